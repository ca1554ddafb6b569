"""One prompt: what a model was trained with is what it is evaluated and read with, unless another
is named.
"""

import json
import shutil

import jax
import pytest

from dft_jax import assets, config as config_lib, main, sharding
from dft_jax.analysis import reading, token_scores, tokens
from dft_jax.api.benchmarks import benchmark_evaluators
from dft_jax.commands import evaluate, model_flags
from dft_jax.data import source_list, templates
from dft_jax.data.templates import Template
from dft_jax.evals import prompts
from dft_jax.evals.settings import Settings
from dft_jax.lm.opening import open_lm
from dft_jax.models.hf.export import export
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.hf.provenance import PROVENANCE_NAME, Origin
from dft_jax.models.model import build
from dft_jax.runtime import errors
from dft_jax.training.origin import of_run
from tests.commands import TINY, run_command

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.TINY)


class Bare:
    """A tokenizer without a chat template."""

    def get_chat_template(self):
        raise ValueError("none")


def test_auto_is_what_the_model_was_trained_with(tokenizer):
    assert prompts.choose("auto", "qwen-boxed", tokenizer).name == "qwen-boxed"
    assert prompts.choose("auto", "", tokenizer).name == "tokenizer"
    assert prompts.choose("auto", "", Bare()).name == "plain"
    assert all(not prompts.choose("auto", trained, tokenizer).warning for trained in ("", "plain"))


def test_another_prompt_than_trained_is_warned_about(tokenizer, tmp_path):
    def warning(asked, trained, **options):
        return prompts.choose(asked, trained, tokenizer, **options).warning

    expected = (
        "--prompt='qwen-boxed', but the model was trained with 'plain': part of any difference"
    )
    assert warning("qwen-boxed", "plain").startswith(expected)
    assert warning("plain", "plain") == warning("plain", "") == ""
    assert "with the instruction 'Think.'" in warning("plain", "plain", instruction="Think.")
    mine, copy, other = (tmp_path / f"{name}.jinja" for name in ("mine", "copy", "other"))
    mine.write_text("a")
    copy.write_text("a")
    other.write_text("b")
    assert warning(str(mine), str(copy)) == "" and "trained with" in warning(str(mine), str(other))


def test_models_with_different_prompts_have_no_shared_one():
    assert prompts.shared({"base": "", "sft": "plain", "dft": "plain"}) == "plain"
    assert prompts.shared({"base": ""}) == ""
    with pytest.raises(
        errors.UserError, match=r"--prompt=auto: .* \(a: 'plain', b: 'qwen-boxed'\); name one"
    ):
        prompts.shared({"a": "plain", "b": "qwen-boxed", "c": ""})


def sources(*template_of):
    """config.data with these templates, None for that of data.template, which is `plain`."""
    config = config_lib.get_default()
    config.data.template = "plain"
    config.data.train = [
        {"path": f"{number}.jsonl"} | ({"template": template} if template else {})
        for number, template in enumerate(template_of)
    ]
    return config


def test_auto_of_a_mixture_is_the_prompt_of_all_its_sources(tokenizer, tmp_path, capsys):
    """Where there are two nobody can tell which is meant, and data.template may be of none."""
    one, two = sources("qwen-boxed", "qwen-boxed"), sources("qwen-boxed", None)
    assert source_list.trained_template(one.data) == "qwen-boxed"
    assert source_list.trained_template(sources(None, None).data) == "plain"
    assert of_run(tmp_path, one, 1, {}).template == "qwen-boxed"
    # An export of it says so as well, and is refused as the run is.
    trained = of_run(tmp_path, two, 1, {}).report()["template"]
    assert trained == source_list.trained_template(two.data)
    assert "keeps the checkpoint's own chat template" in capsys.readouterr().err
    with pytest.raises(errors.UserError) as refused:
        prompts.choose("auto", trained, tokenizer)
    assert str(refused.value) == (
        "--prompt=auto: the model was trained with several prompts ('qwen-boxed' of 0, 'plain' of"
        " 1), and none of them is right for all; name one"
    )
    assert prompts.choose("plain", trained, tokenizer).name == "plain"


def test_a_run_with_two_prompts_is_refused_before_it_begins(tokenizer, tmp_path):
    config = sources("qwen-boxed", None)
    config.eval.benchmarks = "gsm8k"
    model = build(read_config(assets.TINY), sharding.make_mesh(-1, 1, 1))
    with pytest.raises(errors.UserError, match="config.eval.prompt=auto: .* several prompts"):
        benchmark_evaluators(config, tokenizer, model, tmp_path)


def test_the_instruction_is_at_the_end_of_the_question(tokenizer):
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    own = Template("tokenizer", tokenizer).prompt(f"1+1?\n{BOXED}")
    for template in (
        Template("tokenizer-boxed", tokenizer),
        Template("tokenizer", tokenizer, instruction=BOXED),
    ):
        assert template.prompt("1+1?") == own and BOXED in own
        prompt, answer = template.parts(turns)  # trained as it is evaluated
        assert (prompt.text, answer.text) == (own, "2" + tokenizer.eos_token)
    assert Template("plain", tokenizer, instruction="Think.").prompt("1+1?") == "1+1?\nThink.\n"
    assert (
        Template("plain", tokenizer, instruction="Think.").parts(turns)[0].text == "1+1?\nThink.\n"
    )
    assert Template("tokenizer", tokenizer).prompt("1+1?") == own.replace(f"\n{BOXED}", "")


def test_names_of_prompts():
    assert templates.name_problems("--prompt", "tokenizer-boxed") == []
    assert (
        "did you mean 'tokenizer-boxed'"
        in templates.name_problems("--prompt", "tokeniser-boxed")[0]
    )
    assert "auto" in Settings().prompt


def test_a_template_with_a_byte_order_mark_writes_none(tokenizer, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}:")
    assert Template(str(file), tokenizer).prompt("1+1?") == "1+1?:"


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    rows = [{"question": f"{i}+{i}?", "answer": f"#### {2 * i}"} for i in range(2)]
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export that says nothing of its prompt, as one of another program."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = build(read_config(assets.TINY), sharding.make_mesh(-1, 1, 1))
    export(model.init(jax.random.key(0)), model, assets.TINY, folder, origin=Origin(init="random"))
    (folder / PROVENANCE_NAME).unlink(missing_ok=True)
    return folder


def sampled(folder, problems, out, capfd, monkeypatch, *more):
    """Standard error, scores.json and the first prompt of a small evaluation."""
    arguments = [
        f"--model={folder}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={problems}",
        f"--out={out}",
    ]
    arguments += ["--samples=1", "--max_new_tokens=4", "--slots=8", *more]
    outcome = run_command(evaluate.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    first = json.loads((out / "predictions.jsonl").read_text().splitlines()[0])
    return outcome.stderr, json.loads((out / "scores.json").read_text()), first["prompt"]


@pytest.mark.slow
def test_a_checkpoint_is_prompted_as_it_says(
    exported, problems, tmp_path, tokenizer, capfd, monkeypatch
):
    check = (problems, tmp_path / "own", capfd, monkeypatch)
    stderr, scores, prompt = sampled(exported, *check)
    assert "prompt: tokenizer (the checkpoint's own chat template)" in stderr
    assert scores["settings"]["prompt"] == "tokenizer"
    assert prompt == Template("tokenizer", tokenizer).prompt("0+0?")
    says = tmp_path / "says"
    shutil.copytree(exported, says)
    (says / PROVENANCE_NAME).write_text('{"template": "plain"}')
    stderr, scores, prompt = sampled(says, problems, tmp_path / "says_out", capfd, monkeypatch)
    assert "prompt: plain (what the model was trained with)" in stderr and prompt == "0+0?\n"
    assert scores["settings"]["prompt"] == "plain" and not any(
        "trained" in line for line in scores["warnings"]
    )
    other = ["--prompt=tokenizer-boxed"]
    stderr, scores, prompt = sampled(says, problems, tmp_path / "other", capfd, monkeypatch, *other)
    assert "warning: --prompt='tokenizer-boxed', but the model was trained with 'plain'" in stderr
    assert any("was trained with 'plain'" in line for line in scores["warnings"])
    assert BOXED in prompt
    # An evaluation that was begun with a prompt, as all were before `auto`, goes on with it.
    stderr, scores, again = sampled(
        says, problems, tmp_path / "other", capfd, monkeypatch, "--samples=2"
    )
    assert scores["settings"]["prompt"] == "tokenizer-boxed" and again == prompt
    evaluation = json.loads((tmp_path / "other" / "evaluation.json").read_text())
    assert evaluation["prompt"] == "tokenizer-boxed" and "instruction" not in evaluation


def test_an_instruction_is_recorded(exported, problems, tmp_path, capfd, monkeypatch):
    out = tmp_path / "out"
    _, scores, prompt = sampled(exported, problems, out, capfd, monkeypatch, "--instruction=Think.")
    assert "0+0?\nThink." in prompt and scores["settings"]["instruction"] == "Think."
    assert json.loads((out / "evaluation.json").read_text())["instruction"] == "Think."
    arguments = [
        f"--model={exported}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={problems}",
        f"--out={out}",
    ]
    outcome = run_command(
        evaluate.main, [*arguments, "--max_new_tokens=4", "--slots=8"], capfd, monkeypatch
    )
    assert outcome.code == 2 and "instruction: 'Think.' -> 'absent'" in outcome.stderr
    twice = ["--prompt=tokenizer-boxed", "--instruction=Think."]
    outcome = run_command(evaluate.main, [*arguments, *twice], capfd, monkeypatch)
    assert (
        outcome.code == 2
        and "instruction=Think. should be empty with prompt=tokenizer-boxed" in outcome.stderr
    )


@pytest.mark.slow
def test_a_run_is_evaluated_and_read_as_it_was_trained(problems, tmp_path, capfd, monkeypatch):
    eval_ = dict(benchmarks="gsm8k", benchmark_data=problems, samples=1, max_new_tokens=4, slots=8)
    run = tmp_path / "run"
    arguments = [
        TINY,
        f"--workdir={run}",
        "--config.train.steps=1",
        "--config.log.tensorboard=False",
    ]
    arguments += [f"--config.eval.{name}={value}" for name, value in eval_.items()]
    arguments += [
        "--config.data.heldout=",
        "--config.data.max_rows=32",
        "--config.data.template=plain",
    ]
    outcome = run_command(
        main.main, [*arguments, "--config.export.enabled=False"], capfd, monkeypatch
    )
    assert outcome.code == 0, outcome.stderr
    assert "evaluations: prompt 'plain', what the model was trained with" in outcome.stderr
    evaluation = json.loads((run / "eval" / "1" / "evaluation.json").read_text())
    assert evaluation["prompt"] == "plain"
    stderr, scores, prompt = sampled(run, problems, tmp_path / "out", capfd, monkeypatch)
    assert (
        "prompt: plain" in stderr and scores["settings"]["prompt"] == "plain" and prompt == "0+0?\n"
    )
    # The same for demonstrations; that they are read is enough here.
    monkeypatch.setattr(token_scores, "score", enough)
    data = ["--data=world(split=validation, family=chain, levels=2-3, n=4)", "--rows=gsm8k"]
    read = [f"--models=run={run}", *data, "--context=192", f"--out={tmp_path}/tokens"]
    outcome = run_command(tokens.main, read, capfd, monkeypatch)
    assert "prompt: plain (what the model was trained with)" in outcome.stderr
    outcome = run_command(tokens.main, [*read, "--prompt=tokenizer"], capfd, monkeypatch)
    assert (
        "warning: run: --prompt='tokenizer', but the model was trained with 'plain'"
        in outcome.stderr
    )
    outcome = run_command(tokens.main, [*read, "--instruction=Think."], capfd, monkeypatch)
    assert outcome.code == 2 and "--instruction is of sampled questions only" in outcome.stderr


def enough(*arguments):
    raise errors.UserError("enough")


def test_demonstrations_are_read_with_the_date_of_the_training(
    tmp_path, tokenizer, monkeypatch, capsys
):
    """Of several models the first that has one; today's only where nobody knows; none where none is
    written.
    """
    dated = tmp_path / "dated.jinja"
    dated.write_text("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}:")
    monkeypatch.setattr(reading, "today", lambda: "2026-03-04")

    def date_of(prompt, **dates):
        return reading._date(tokenizer, dates, prompt, "--")

    assert date_of(str(dated), base="", sft="2026-01-02") == "2026-01-02"
    assert date_of(str(dated), base="") == "2026-03-04"
    assert date_of("plain", sft="2026-01-02") == "" and capsys.readouterr().err == ""
    assert date_of(str(dated), sft="2026-01-02", dft="2026-01-03") == "2026-01-02"
    assert (
        "warning: dft was trained with the date 2026-01-03 in its prompt" in capsys.readouterr().err
    )


def test_an_export_carries_the_date_of_its_run(exported, tmp_path):
    config = config_lib.get_default()
    config.data.date = "2026-01-02"
    says = of_run(tmp_path, config, 3, {}).report()
    assert says["date"] == "2026-01-02"
    folder = shutil.copytree(exported, tmp_path / "says")
    (folder / PROVENANCE_NAME).write_text(json.dumps(says))
    assert open_lm(str(folder)).date == "2026-01-02"
    (folder / PROVENANCE_NAME).write_text('{"template": "plain"}')
    assert open_lm(str(folder)).date == ""


def test_prompts_with_characters_without_a_token_are_warned_about(tokenizer):
    laboratory = load_tokenizer(assets.LAB)
    asked = ["1+1?\n", "f(2)?\n", "很好?\n"]
    [warning] = prompts.unread("gsm8k", asked, laboratory)
    assert warning.startswith(
        "gsm8k: the tokenizer has no token for some characters (such as '()很好')"
    )
    assert "in the prompts of 2 of 3 problems" in warning
    assert (
        prompts.unread("gsm8k", asked[:1], laboratory)
        == prompts.unread("gsm8k", asked, tokenizer)
        == []
    )


def test_a_revision_of_a_folder_is_refused(tmp_path):
    folder, refuse = str(tmp_path), model_flags.refuse_idle_revision
    with pytest.raises(
        errors.UserError, match="--revision=v2 has no effect: .* is a folder; remove it"
    ):
        refuse([folder], "v2")
    refuse([folder], "main")
    refuse([folder, "Qwen/Qwen2.5-Math-1.5B"], "v2")
