"""Completions and chats of the command `python -m dft_jax.generate`."""

import io
import json
import shutil
import sys

import pytest

import dft_jax as dft
from dft_jax import assets
from dft_jax.commands import asked_prompts, chat, completing, generate
from dft_jax.commands.chat import Chat
from dft_jax.data.templates import Template
from dft_jax.runtime import errors
from dft_jax.sampling import texts
from dft_jax.sampling.sampler import Request
from dft_jax.sampling.texts import BY_LIMIT, BY_TEXT, BY_TOKEN, Text
from tests.commands import ROOT, assert_refused, run_command
from tests.conftest import GOLDEN
from tests.marks import slow_but
from tests.terminal import Terminal

QUESTION = "Ann has 10 coins. Gus has 6 fewer coins than Ann. How many has Gus?"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


# ---- texts that grow


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("a b", [], "a b"),
        ("a b###c", ["###"], "a b"),
        # The first place counts, not the first text of the list.
        ("a\nb###c", ["###", "\n"], "a"),
        # What may be the beginning of a stop text is kept back, the longest such.
        ("a b##", ["###"], "a b"),
        ("a\n", ["\n\nclass", "\ndef "], "a"),
        ("a\nde", ["\n\nclass", "\ndef "], "a"),
        ("a\ndo", ["\n\nclass", "\ndef "], "a\ndo"),
        # Two bytes of a character that has three.
        ("a\ufffd", ["###"], "a"),
        ("a\ufffdb", [], "a\ufffdb"),
    ],
)
def test_what_is_shown_of_a_text_stays_whatever_comes(text, stop, shown):
    assert texts.shown_of(text, stop) == shown
    for more in ("", "#", "\n", "ef x", "!"):
        assert texts.until_stop(text + more, stop).startswith(shown.rstrip("\ufffd"))


def test_nothing_that_a_terminal_would_obey_is_shown():
    assert completing.as_shown("a\033[2Jb\tc\n\x07", True) == "a\\x1b[2Jb    c\n\\x07"
    assert completing.as_shown("a\033[2Jb", False) == "a\033[2Jb"


# ---- prompts


def read(folder, rows, name="p.jsonl", system=""):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return asked_prompts.read_prompts(None, str(file), system)


def test_prompts_of_a_file(tmp_path):
    user, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    own = {"role": "system", "content": "own"}
    rows = [
        {"prompt": "a", "id": 7, "more": 1, "images": [], "system": None},
        {"messages": [user, said, user]},
        {"messages": [own, user]},
    ]
    found = read(tmp_path, rows, system="be brief")
    system = {"role": "system", "content": "be brief"}
    assert [prompt.id for prompt in found] == ["7", "p.jsonl:2", "p.jsonl:3"]
    assert found[0].messages == (system, {"role": "user", "content": "a"})
    assert found[1].messages == (system, user, said, user)
    assert found[2].messages == (own, user)
    (tmp_path / "p.txt").write_text("def f():\n")
    (whole,) = asked_prompts.read_prompts(None, str(tmp_path / "p.txt"), "")
    assert whole.messages == ({"role": "user", "content": "def f():\n"},)
    (tmp_path / "p.txt").write_text("def f():\n", encoding="utf-8-sig")
    assert asked_prompts.read_prompts(None, str(tmp_path / "p.txt"), "") == [whole]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "?"}, "p.jsonl:1: a row has either 'prompt' or 'messages'; this one has 'qu"),
        ({"prompt": "?", "messages": []}, "either 'prompt' or 'messages'"),
        ({"prompt": 3}, "field 'prompt' should be text"),
        ({"messages": []}, "should be a list of messages"),
        ({"messages": [{"role": "assistant", "content": "!"}]}, "should be the user's"),
        ({"messages": [{"role": "tool", "content": "!"}]}, "message 0 should be of system, user"),
        ({"messages": [{"role": "user", "content": "!", "weight": 0}]}, "and nothing else"),
        ({"prompt": "\ud800"}, "p.jsonl:1: field 'prompt' holds half a surrogate pair"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "message 0 holds half a surrogate"),
        ({"prompt": "?", "images": ["a.png"]}, "p.jsonl:1: field 'images' is not read"),
        (
            {"messages": [{"role": "user", "content": "?"}], "image": "a.png"},
            "field 'image' is not",
        ),
        ({"prompt": "?", "system": "be brief"}, "field 'system' is not read"),
        ({"prompt": "?", "id": True}, "field 'id' should be text or a number, not True"),
    ],
)
def test_rows_that_are_no_prompts_are_refused(row, expected, tmp_path):
    with pytest.raises(errors.UserError) as error:
        read(tmp_path, [row])
    assert expected in str(error.value)


ADAPTER = GOLDEN / "lora" / "all_linear"
LONG = "a" * 300
REFUSALS = {
    "nothing to do": ([], ["nothing to complete: give --prompt=TEXT or --file=FILE"]),
    "json in a chat": (["--json"], ["--json has no effect in a chat"]),
    "both": (["--prompt=a", "--file=b"], ["--prompt and --file both say", "--file=b: no such"]),
    "greedy twice": (["--prompt=a", "--temperature=0", "--n=2"], ["greedily all completions are"]),
    "an empty stop": (["--prompt=a", "--stop="], ["--stop is empty"]),
    "an unknown template": (["--prompt=a", "--template=plan"], ["did you mean 'plain'?"]),
    "a template without a place": (["--prompt=a", "--system=b"], ["--system has no place under"]),
    "no such flag": (["--promt=a"], ["promt"]),
    "no step": (["--prompt=a", "--step=best"], ["--step=best", "is no run"]),
    "too long": (["--prompt=a b c d e f", "--context=3"], ["leaves no room within 3"]),
    "no adapter": (["--prompt=a", "--base=x"], ["--base=x has no effect"]),
    "no temperature": (["--prompt=a", "--temperature=nan"], ["--temperature=nan is no number"]),
    "a negative temperature": (["--prompt=a", "--temperature=-1"], ["--temperature=-1", "[0, 10]"]),
    "no top_p": (["--prompt=a", "--top_p=nan"], ["--top_p=nan is no number"]),
    # As Python reads the bytes of Latin-1 in a command line.
    "a prompt in Latin-1": (["--prompt=caf\udce9"], ["--prompt='caf\\udce9' is not UTF-8"]),
    "a stop in Latin-1": (["--prompt=a", "--stop=\udce9"], ["--stop='\\udce9' is not UTF-8"]),
    "a system in Latin-1": (["--prompt=a", "--system=\udce9"], ["--system='\\udce9' is not"]),
    "no completions": (["--prompt=a", "--n=0"], ["--n=0", "positive"]),
    "n in words": (["--prompt=a", "--n=two"], ["--n=two"]),
    "a stop without a text": (["--prompt=a", "--stop"], ["Missing value for flag --stop"]),
    "a prompt without its flag": (["What is 2?"], ["unexpected argument 'What is 2?'"]),
    "no model": (["--prompt=a", "--model=/no/where"], ["model='/no/where' is not a folder"]),
    "an empty folder": (["--prompt=a", "--model={}/none"], ["config.json is missing"]),
    "an empty file": (["--file={}/a.txt"], ["a.txt is empty; write the prompt there"]),
    "a file of no rows": (["--file={}/a.jsonl"], ["a.jsonl has no rows"]),
    "rows that are none": (
        ["--file={}/bad.jsonl"],
        ["bad.jsonl:2: not JSON at column 1", "bad.jsonl:3: field 'prompt' should be text"],
    ),
    "a model of too long a name": (["--prompt=a", f"--model={LONG}"], [LONG, "name too long"]),
    "a base of too long a name": (
        ["--prompt=a", f"--model={ADAPTER}", f"--base={LONG}"],
        ["is not a folder", LONG],
    ),
    "a file of too long a name": ([f"--file={LONG}.jsonl"], [f"{LONG}.jsonl", "name too long"]),
    "nobody's file": (["--file=~nobody-here/a.jsonl"], ["~nobody-here/a.jsonl: nothing there"]),
    "another base": (
        ["--prompt=a", f"--model={ADAPTER}", f"--base={assets.LAB}"],
        ["but the base's matrix is", "give its own base"],
    ),
    "no base": (
        ["--prompt=a", f"--model={ADAPTER}", "--base=/no/where"],
        ["base='/no/where' is not a folder"],
    ),
}


# These open the model first.
_LATE = {"a template without a place", "too long", "no adapter", "another base"}


@pytest.mark.parametrize(
    "name", slow_but([one for one in REFUSALS if one not in _LATE], list(REFUSALS))
)
def test_mistakes_are_one_line_each_before_anything_compiles(name, tmp_path, capfd, monkeypatch):
    arguments, expected = REFUSALS[name]
    arguments = [one.replace("{}", str(tmp_path)) for one in arguments]
    (tmp_path / "none").mkdir()
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n{"prompt": 3}\n')
    model = f"--model={assets.LAB}"
    for one in generate.FLAGS:
        generate.FLAGS[one].unparse()
    outcome = run_command(generate.main, [model, *arguments], capfd, monkeypatch)
    notes = ("model: ",)
    lines = outcome.stderr.splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.startswith(notes))
    assert_refused(type(outcome)(outcome.code, outcome.stdout, kept, outcome.compiled), *expected)
    assert outcome.stdout == ""


# ---- what is written


class Written:
    """A writer that says, word by word, what it is asked for."""

    def __init__(self, answers):
        self.answers = list(answers)
        self.asked = []

    def complete(self, requests, on_text=None, show_progress=False):
        for request in requests:
            self.asked.append(request)
            text = self.answers.pop(0)
            if isinstance(text, BaseException):
                on_text(request, "begun")
                raise text
            for end in range(0, len(text), 3):
                on_text(request, text[:end])
            yield Text(request, text, 5, BY_TOKEN)


def places(n_prompts, n):
    found = []
    for number in range(n_prompts):
        prompt = asked_prompts.Prompt(f"p{number}", ({"role": "user", "content": str(number)},))
        for sample in range(n):
            found.append((prompt, Request(str(number), sample, (1,), 1.0, 9)))
    return found


def test_completions_are_written_in_order_whichever_is_finished_first():
    listed = places(2, 2)
    a, b, c, d = [request for _, request in listed]
    out = io.StringIO()
    stream = completing.Stream(out, listed, is_terminal=False)
    stream.tell(c, "third")
    stream.tell(a, "fir")
    assert out.getvalue() == "── p0, 0\nfir"
    stream.finish(Text(c, "third one", 3, BY_TOKEN))
    stream.finish(Text(b, "second\n", 3, BY_TOKEN))
    stream.finish(Text(a, "first", 3, BY_TOKEN))
    stream.tell(d, "las")
    stream.finish(Text(d, "last", 3, BY_LIMIT))
    expected = ["── p0, 0", "first", "── p0, 1", "second", "── p1, 0", "third one", "── p1, 1"]
    assert out.getvalue() == "\n".join([*expected, "last", ""])


@pytest.fixture(scope="module")
def base():
    return dft.load(assets.LAB)


def test_the_same_prompt_many_times_is_sampled_once(base, capfd, monkeypatch):
    """The writer tells of the last ones when all that is to be written is written."""
    user = {"role": "user", "content": QUESTION}
    prompts = [asked_prompts.Prompt(f"p{number}", (user,)) for number in range(70)]
    writer = Written(["ten"] * 70)
    monkeypatch.setattr(completing.Settings, "writer", lambda *_, **__: writer)
    template = Template("plain", base.tokenizer)
    completing.complete(base, template, completing.Settings(), prompts, as_json=False)
    shown = capfd.readouterr().out
    assert shown == "".join(f"── p{number}, 0\nten\n" for number in range(70))
    assert len(writer.asked) == 1


def talk(base, tmp_path, lines, answers, **settings):
    """What a chat writes when these lines are typed, and the prompts of its requests."""
    template = settings.pop("template", None)
    if template is None:
        file = tmp_path / "chat.jinja"
        file.write_text(CHAT_TEMPLATE)
        template = str(file)
    typed, out = list(lines), io.StringIO()

    def read_line(prompt):
        if not typed:
            raise EOFError
        line = typed.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    one = Chat(
        base,
        Template(template, base.tokenizer),
        completing.Settings(**settings),
        read=read_line,
        out=out,
    )
    one.writer = Written(answers)
    one.run()
    prompts = [base.tokenizer.decode(request.prompt_ids) for request in one.writer.asked]
    return out.getvalue(), prompts, one.writer.asked


@pytest.mark.slow
def test_a_chat_remembers_forgets_and_answers_again(base, tmp_path):
    lines = ["one?", "two?", "/again", "/new", "/system S", "Three \\", "lines?", " ", "/oops"]
    out, prompts, asked = talk(base, tmp_path, lines, ["uno", "dos", "tres", "cuatro"])
    first = "user: one?\nassistant: uno\nuser: two?\nassistant: "
    assert prompts == [
        "user: one?\nassistant: ",
        first,
        first,
        "system: S\nuser: Three \nlines?\nassistant: ",
    ]
    # Another number is another draw of the same prompt; the next question begins anew.
    assert [request.sample for request in asked] == [0, 0, 1, 0]
    assert asked[0].problem == "one?", "the noise that dft.sample has for it"
    assert "uno\n" in out and "tres\n" in out and "/oops is no command" in out
    assert "5 tokens" in out and "a second" in out


@pytest.mark.slow
def test_an_answer_is_ended_by_ctrl_c_and_the_chat_goes_on(base, tmp_path):
    stop = KeyboardInterrupt()
    out, prompts, _ = talk(base, tmp_path, ["one?", stop, "two?"], [stop, "dos"])
    assert "begun\n" in out and "ended by Ctrl-C" in out and "ends the chat" in out
    assert prompts[1] == "user: one?\nassistant: begun\nuser: two?\nassistant: "


@pytest.mark.slow
def test_ctrl_c_between_a_question_and_its_answer_is_no_end_either(base, tmp_path, monkeypatch):
    """A slow machine is still making the request when somebody changes their mind."""
    made, request_of = [], completing.request_of

    def interrupted_once(*arguments):
        made.append(arguments)
        if len(made) == 1:
            raise KeyboardInterrupt
        return request_of(*arguments)

    monkeypatch.setattr(chat, "request_of", interrupted_once)
    out, prompts, _ = talk(base, tmp_path, ["one?", "two?"], ["dos"])
    assert "ends the chat" in out and "dos" in out
    assert prompts == ["user: two?\nassistant: "], "a question without an answer is forgotten"


@pytest.mark.slow
def test_without_turns_each_line_is_a_prompt_of_its_own(base, tmp_path):
    lines = ["one?", "two?", "/system x", "x" * 500]
    out, prompts, _ = talk(base, tmp_path, lines, ["uno", "dos"], template="plain", context=64)
    assert prompts == ["one?\n", "two?\n"]
    assert "'plain' has no turns" in out and "'plain' has no place for it" in out
    assert "leaves no room within 64" in out, "a mistake is no end of a chat"


# ---- with the model that ships with the package


@pytest.mark.slow
def test_lines_of_json_are_what_the_api_samples(base, tmp_path, capfd, monkeypatch):
    """Shown in steps of four tokens or of sixty-four, the completions are the same."""
    for one in generate.FLAGS:
        generate.FLAGS[one].unparse()
    file = tmp_path / "p.jsonl"
    prompts = [QUESTION, QUESTION.replace("10", "9"), QUESTION]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    arguments = [f"--model={assets.LAB}", f"--file={file}", "--json", "--n=3", "--seed=5"]
    outcome = run_command(generate.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    rows = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [
        (f"p.jsonl:{line}", sample) for line in (1, 2, 3) for sample in range(3)
    ]
    assert rows[0]["prompt"] == f"{QUESTION}\n" and rows[0]["temperature"] == 1.0
    assert {row["ended_by"] for row in rows} == {BY_TOKEN}
    assert rows[:3] == [row | {"id": "p.jsonl:1"} for row in rows[6:]], "the same prompt twice"
    expected = dft.sample(base, prompts, n=3, seed=5, show_progress=False)
    assert [row["completion"] for row in rows] == [text for three in expected for text in three]


@pytest.mark.more
def test_a_stop_text_ends_a_completion_wherever_the_host_looks(base):
    """The text before it, and as many tokens as it took; others go on beside it."""
    lm = dft.load(assets.LAB, mesh={"data": 4, "tensor": 2})
    questions = [QUESTION.replace("10", str(n)) for n in range(7, 12)]
    whole = dft.sample(base, questions, n=2, seed=1, show_progress=False)
    cut = dft.sample(lm, questions, n=2, seed=1, stop="\n", show_progress=False)
    assert cut == [[text.partition("\n")[0] for text in two] for two in whole]
    found = {}
    for steps in (1, 3, 64):
        template = Template("plain", lm.tokenizer)
        writer = completing.Settings(stop=("\n",), seed=1).writer(
            lm, template, slots=4, steps_at_once=steps
        )
        requests = []
        for question in questions:
            message = {"role": "user", "content": question}
            settings = completing.Settings(max_new_tokens=40)
            requests.append(completing.request_of(lm, template, settings, [message], 0))
        made = list(writer.complete(requests))
        found[steps] = {text.request.problem: (text.text, text.tokens) for text in made}
        assert {text.ended_by for text in made} == {BY_TEXT}
        assert [found[steps][question][0] for question in questions] == [two[0] for two in cut]
    assert found[1] == found[3] == found[64]


@pytest.mark.slow
def test_the_token_that_ends_an_answer_is_no_text_of_it(tmp_path):
    """generation_config.json names a full stop, which is an ordinary token."""
    model = tmp_path / "ends"
    shutil.copytree(assets.LAB, model)
    lm = dft.load(model)
    (full_stop,) = lm.tokenizer.encode(".")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, full_stop]}))
    lm, shown = dft.load(model), []
    template, settings = Template("plain", lm.tokenizer), completing.Settings(max_new_tokens=40)
    message = {"role": "user", "content": QUESTION}
    request = completing.request_of(lm, template, settings, [message], 0)
    writer = settings.writer(lm, template, slots=1, steps_at_once=64)
    (made,) = writer.complete([request], lambda _, text: shown.append(text))
    whole = dft.sample(dft.load(assets.LAB), QUESTION, max_new_tokens=40, show_progress=False)
    assert made.ended_by == BY_TOKEN and made.text == whole[0].partition(".")[0]
    assert shown[-1] == made.text and made.text
    assert made.tokens == len(lm.tokenizer.encode(f"{made.text}."))


@pytest.mark.slow
def test_a_chat_in_a_terminal(tmp_path):
    """Typed into a pseudo-terminal: answers come while they are made, Ctrl-C ends one of them."""
    model = tmp_path / "chatty"
    shutil.copytree(assets.LAB, model)
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    command = [sys.executable, "-m", "dft_jax.generate", f"--model={model}", "--temperature=0"]
    with Terminal([*command, "--max_new_tokens=400"], cwd=ROOT) as terminal:
        begun = terminal.wait_for("you> ")
        assert "prompt: tokenizer (the checkpoint's own chat template)" in begun
        assert "a chat with chatty; /help" in begun
        terminal.type(f"{QUESTION}\n")
        answer = terminal.wait_for("a second")
        assert " tokens" in answer and QUESTION in answer
        terminal.wait_for("you> ")
        terminal.type("/again\n")
        assert "there is one answer only" in terminal.wait_for("you> ")
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_an_answer_and_not_the_chat(tmp_path):
    """The model has no token that ends an answer, so this one would go on for 2,000 tokens."""
    command = [sys.executable, "-m", "dft_jax.generate", f"--model={assets.LAB}"]
    with Terminal([*command, "--template=raw", "--temperature=3"], cwd=ROOT) as terminal:
        terminal.wait_for("you> ")
        terminal.type("Ann has\n")
        terminal.wait_for("Ann has\n")
        terminal.wait_for(" ")  # of the answer
        terminal.interrupt()
        assert "ended by Ctrl-C" in terminal.wait_for("you> ")
        terminal.type("/quit\n")
        assert terminal.end() == 0


@pytest.mark.slow
def test_characters_that_the_model_cannot_read_are_said(base, tmp_path, capfd, monkeypatch):
    out, _, _ = talk(base, tmp_path, ["Où?"], ["?"])
    assert "has no token for 'Où'" in out
    for one in generate.FLAGS:
        generate.FLAGS[one].unparse()
    arguments = [f"--model={assets.LAB}", "--prompt=Où?", "--max_new_tokens=1"]
    outcome = run_command(generate.main, arguments, capfd, monkeypatch)
    assert "warning: prompt: the tokenizer has no token for" in outcome.stderr


@pytest.mark.slow
def test_a_prompt_in_a_terminal(tmp_path):
    """Streamed without a bar; a pipe gets the bare text."""
    command = [sys.executable, "-m", "dft_jax.generate", f"--model={assets.LAB}"]
    command += [f"--prompt={QUESTION}", "--temperature=0"]
    with Terminal(command, cwd=ROOT) as terminal:
        shown = terminal.wait_for("#### 4")
        assert "sampling" not in shown and "10-6=4" in shown
        assert terminal.end() == 0
