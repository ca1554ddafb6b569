"""Texts that end completions of programs: sampling stops there, and no verdict changes."""

import json

import pytest

from dft_jax import assets, sharding
from dft_jax.commands import evaluate
from dft_jax.evals.graders import programs
from dft_jax.evals.jail import extraction
from dft_jax.evals.jail.extraction import CONTINUATION, DOCSTRING, STOPS, code_of
from dft_jax.evals.tasks import benchmarks, code
from dft_jax.sampling import sampler
from dft_jax.sampling.sampler import Completion
from dft_jax.sampling.texts import n_until_stop, until_stop
from tests.commands import check_refused, run_command
from tests.conftest import make_mesh

BODY = "    return 'é — 木'\n"
# What a model may write, each with a stop text of both styles or of one, or with none.
COMPLETIONS = [
    BODY,
    f"{BODY}\nprint(f(1))\n",
    f"{BODY}\n\nif __name__ == '__main__':\n    f(1)\n",
    f"{BODY}\ndef g():\n    pass\n",
    f"{BODY}\nclass A:\n    pass\n",
    f"{BODY}\nassert f(1) == 2\nassert f(2) == 3\n",
    f'{BODY}\n"""\nAnother task.\n"""\n',
    f"{BODY}\n```\nSo 木 it is.",
    "\nprint(1)\n" + BODY,  # at its very beginning
    "\ndef f():\n" + BODY + "\ndef g():\n    pass\n",
    f"    # 木\nassert False\n{BODY}",  # right behind a character of three bytes
    f"    if x:\n    return 1\n\nprinting = 1\n{BODY}",  # a beginning only
    BODY + "</s>",
    "",
]


def tokens_of(text, size):
    """The text in UTF-8 in pieces of so many bytes: characters and stop texts are split anywhere.

    The id of a piece is the number that its bytes make behind a 1.
    """
    data = text.encode()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [int.from_bytes(b"\1" + piece, "big") for piece in pieces]


def decode(ids):
    """As tokenizers of bytes do: of a character that is not whole there is a mark."""
    pieces = [one.to_bytes((one.bit_length() + 7) // 8, "big")[1:] for one in ids]
    return b"".join(pieces).decode(errors="replace")


@pytest.mark.parametrize("style", [CONTINUATION, DOCSTRING])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_the_program_is_that_of_the_whole_completion(style, size):
    prompt = "def f(x):"
    n_shorter = 0
    for completion in COMPLETIONS:
        ids = tokens_of(completion, size)
        n = n_until_stop(ids, decode, STOPS[style])
        first = 0
        for length in range(len(ids), 0, -1):
            if any(stop in decode(ids[:length]) for stop in STOPS[style]):
                first = length
        assert n == first, completion
        kept = until_stop(decode(ids[: n or None]), STOPS[style])
        assert kept == extraction.cut(completion, style)
        assert code_of(kept, prompt, "f", style) == code_of(completion, prompt, "f", style)
        n_shorter += 0 < n < len(ids)
    assert n_shorter >= 6 or size == 100


def test_no_stop_text_is_inside_another():
    """Else the one inside would end a completion before the other is there, which begins earlier,
    and where extraction would have cut.
    """
    for style, texts in STOPS.items():
        for one in texts:
            assert not any(one in other for other in texts if other != one), (style, one)


def test_they_are_extractions_where_a_model_continues_and_none_where_it_answers():
    for name, style in [("humaneval", CONTINUATION), ("mbpp_plus", DOCSTRING)]:
        task = benchmarks.find(name)
        assert task.stop_texts(code.BASE_TEMPLATE) == STOPS[style]
        assert task.stop_texts("tokenizer") == ()
    assert benchmarks.find("gsm8k").stop_texts(code.BASE_TEMPLATE) == ()
    # Of a problem the same: its program is cut by it.
    program = benchmarks.load("lab_code")[0].program
    assert STOPS[program.style] == benchmarks.find("lab_code").stop_texts(code.BASE_TEMPLATE)


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """run(out, *flags, mesh=): samples four problems of the laboratory's model twice and greedily;
    the rows.
    """

    def run(out, *arguments, mesh=None):
        fixed = [f"--model={assets.LAB}", "--benchmarks=lab_code", "--max_problems=4"]
        fixed += ["--samples=2", "--max_new_tokens=40", f"--out={tmp_path}/{out}"]
        with monkeypatch.context() as patch:
            if mesh is not None:
                patch.setattr(sharding, "checked_mesh", lambda **sizes: make_mesh(*mesh))
            outcome = run_command(evaluate.main, [*fixed, *arguments], capfd, monkeypatch)
        assert outcome.code == 0, outcome.stderr
        lines = (tmp_path / out / "predictions.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


def scores(folder):
    """All but what differs by the command line and the clock."""
    content = json.loads((folder / "scores.json").read_text())
    content["environment"].pop("command")
    return content.pop("speed"), content


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_row_ends_with_the_first_of_them_however_it_is_sampled(run, tmp_path, monkeypatch):
    """Against the completions that go on to the limit; with texts that this model does write.

    Verdicts, lengths and entropies are the same on one device and on eight, in other slots, and
    where the evaluation was killed.
    """
    programs.require(["lab_code"])
    with monkeypatch.context() as patch:
        patch.setitem(STOPS, CONTINUATION, ())
        whole = run("whole", "--prompt=plain", mesh=(1, 1, 1))
    assert "stop_texts" not in json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    stop = (" has", "3", "\n")
    monkeypatch.setitem(STOPS, CONTINUATION, stop)
    ended = run("ended", "--prompt=plain", mesh=(1, 1, 1))
    n_ended = 0
    for row, long in zip(ended, whole, strict=True):
        assert row["completion"] == until_stop(long["completion"], stop)
        is_ended = row["completion"] != long["completion"]
        n_ended += is_ended
        assert 0 < row["tokens"] <= long["tokens"]
        assert row["truncated"] == (long["truncated"] and not is_ended)
        if not is_ended:
            assert row["entropy"] == long["entropy"] and row["tokens"] == long["tokens"]
    assert n_ended >= 6 and any(row["truncated"] for row in whole)
    speed, expected = scores(tmp_path / "ended")
    assert speed["sampled_tokens"] < 0.8 * scores(tmp_path / "whole")[0]["sampled_tokens"]
    assert expected["stop_texts"] == {"lab_code": list(stop)}

    content = (tmp_path / "ended" / "predictions.jsonl").read_bytes()
    run("eight", "--prompt=plain", "--slots=3", mesh=(8, 1, 1))
    sample = sampler.Sampler.sample

    def die_after_five(self, params, requests, progress=True, watch=None):
        for number, completion in enumerate(sample(self, params, requests, progress, watch)):
            if number == 5:
                raise Killed
            yield completion

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sampler.Sampler, "sample", die_after_five)
        run("killed", "--prompt=plain", "--slots=2", mesh=(1, 1, 1))
    assert not (tmp_path / "killed" / "scores.json").exists()
    run("killed", "--prompt=plain", mesh=(2, 1, 2))
    for out in ("eight", "killed"):
        assert (tmp_path / out / "predictions.jsonl").read_bytes() == content
    # How many slots there are is a setting, and no part of a sample.
    _, resumed = scores(tmp_path / "killed")
    assert resumed == expected


@pytest.fixture
def no_model(monkeypatch):
    """Completions of no model, where only what is done with them matters."""

    def sample(self, weights, requests, progress=True, watch=None):
        for request in requests:
            yield Completion(request, (1, 2), True, 0.5)

    monkeypatch.setattr(sampler.Sampler, "sample", sample)


@pytest.mark.slow
def test_a_folder_without_them_is_not_continued(run, no_model, tmp_path, capfd, monkeypatch):
    skip = "--programs=skip"
    run("out", "--prompt=plain", skip)
    file = tmp_path / "out" / "evaluation.json"
    evaluation = json.loads(file.read_text())
    assert evaluation["stop_texts"] == {"lab_code": list(STOPS[CONTINUATION])}
    run("out", "--prompt=plain", skip, "--samples=3")
    # As it was written before sampling had them.
    del evaluation["stop_texts"]
    file.write_text(json.dumps(evaluation))
    arguments = [f"--model={assets.LAB}", "--benchmarks=lab_code", "--max_problems=4"]
    arguments += ["--samples=2", "--max_new_tokens=40", skip, "--prompt=plain"]
    arguments += [f"--out={tmp_path}/out"]
    expected = ["texts that end a completion of lab_code: [] -> ['\\ndef ',"]
    check_refused(evaluate.main, arguments, expected, tmp_path, capfd, monkeypatch)
    # The folder's other benchmarks know nothing of them, and answers have none.
    run("chat", "--prompt=qwen-boxed", skip)
    assert "stop_texts" not in json.loads((tmp_path / "chat" / "evaluation.json").read_text())
    run("chat", "--prompt=qwen-boxed", skip, "--samples=3")
