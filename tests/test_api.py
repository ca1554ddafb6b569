"""The public API as a notebook uses it, on the models that ship with the package."""

import ast
import inspect
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import dft_jax as dft
from dft_jax import api, assets
from dft_jax.api import given
from dft_jax.runtime import errors
from dft_jax.runtime.options import Option
from tests.commands import ROOT

SHORT = {
    "model.path": "",
    "train.steps": 4,
    "train.global_batch": 8,
    "data.max_rows": 32,
    "eval.benchmarks": "",
    "checkpoint.every": 2,
    "log.tensorboard": False,
    "export.enabled": False,
}


@pytest.fixture(scope="module")
def base():
    return dft.load(assets.LAB)


@pytest.fixture(scope="module")
def config():
    config = dft.recipe(ROOT / "configs/lab_base.py", objective="dft", **SHORT)
    assert config.train.steps == 4 and config.objective == "dft"
    config.unlock()
    config.model.init = "checkpoint"
    config.data.template = "plain"
    config.data.train = "world(split=train, family=chain, levels=2-4, n=64)"
    config.data.heldout = ""
    return config.lock()


@pytest.fixture(scope="module")
def run(base, config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("api") / "run"
    return dft.finetune(base, config, workdir, show_progress=False)


def test_importing_the_package_imports_nothing_heavy():
    """A grader's process starts without JAX; functions of the API are there on first use."""
    code = "import sys, dft_jax; print('jax' in sys.modules, callable(dft_jax.load), 'jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["False", "True", "True"]


def test_the_package_gives_the_functions_of_the_api():
    """Not the commands of the same names, whatever was imported before."""
    for name in dft.__all__:
        assert getattr(dft, name) is getattr(api, name)
        assert name in dir(dft)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        dft.lode  # noqa: B018 — the access is what is tested
    for file in (ROOT / "dft_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                assert not names & {"dft_jax.evaluate", "dft_jax.export"}, file


@pytest.mark.parametrize("name", dft.__all__)
def test_functions_say_what_they_do_with_an_example(name):
    function = getattr(dft, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
    if name != "get_default":
        assert ">>>" in function.__doc__, "an example"


@pytest.mark.slow
def test_a_run_resumes_and_shows_its_curve(run, base, config, tmp_path):
    again = dft.finetune(base, config, run.workdir, show_progress=False)
    assert again.step == run.step == 4
    steps, values = run.curve("train/nll")
    assert steps == [1, 2, 3, 4] and np.isfinite(values).all()
    assert len(run.plot("train/nll").lines[0].get_xdata()) == 4
    assert "api.md" not in str(run.metrics)
    assert run.lm.identify()["step"] == 4 and run.lm.trained == "plain"


@pytest.mark.slow
def test_scores_of_a_run_and_of_its_folder_are_the_same(run, tmp_path):
    """In memory, and opened from where it was saved."""
    data = "world(split=validation, family=chain, levels=2-4, n=8)"
    mine = dft.score(run.lm, data, rows="gsm8k", max_length=192)
    opened = dft.load(run.workdir)
    theirs = dft.score(opened, data, rows="gsm8k", max_length=192, show_progress=False)
    np.testing.assert_allclose(mine.p_T, theirs.p_T, rtol=1e-4)
    assert len(mine.texts) == len(mine.p_T) == len(mine.example_T) and mine.example_T[-1] == 7
    # Near p = 1 the logarithm of a float32 has few digits left.
    np.testing.assert_allclose(mine.loss_T, -np.log(mine.p_T), rtol=1e-5, atol=1e-6)
    assert "tokens, nll" in repr(mine)
    assert opened.identify() == run.lm.identify()


@pytest.mark.slow
def test_evaluate_compare_and_export(run, base, tmp_path):
    # As NumPy counts.
    asked = {"max_problems": np.int64(4), "context": 192, "samples": np.int32(2), "greedy": False}
    asked["temperature"] = np.ones(1)
    kept = dft.evaluate(run.lm, ["lab"], out=tmp_path / "eval", **asked)
    scores = {"base": dft.evaluate(base, "lab", show_progress=False, **asked), "dft": kept}
    assert scores["base"].folder is None and (kept.folder / "scores.json").exists()
    assert "lab" in str(kept) and kept.results[0]["samples_per_problem"] == 2
    made = dft.compare(scores)
    assert "base" in str(made) and {row["run"] for row in made.rows} == {"base", "dft"}
    from_folder = dft.compare({"base": scores["base"], "dft": tmp_path / "eval"})
    assert from_folder.rows == made.rows
    named = dft.compare({"lr=1e-4": tmp_path / "eval", 1e-5: kept})
    assert {row["run"] for row in named.rows} == {"lr=1e-4", "1e-05"}
    made.plot(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000
    dft.export(run.lm, tmp_path / "export", dtype="float32")
    about = json.loads((tmp_path / "export/dft_jax.json").read_text())
    assert about["step"] == 4 and about["objective"] == "dft" and about["run_id"]
    assert dft.load(tmp_path / "export").trained == "plain"


@pytest.mark.slow
def test_sampling_depends_on_seed_question_and_number_alone(base):
    questions = ["Ann has 3 apples. Ben has 2 more. How many has Ben?", "Ida has 4 pens. How many?"]
    several = dft.sample(base, questions, n=2, temperature=1.0, max_new_tokens=24)
    assert [len(texts) for texts in several] == [2, 2]
    alone = dft.sample(base, questions[1], n=2, max_new_tokens=24, show_progress=False)
    assert alone == several[1]
    assert len(dft.sample(base, questions[0], temperature=0, max_new_tokens=8)) == 1


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda base: dft.load("./none"), "./none"),
        (lambda base: dft.recipe("none.py"), "none.py"),
        (lambda base: dft.recipe(ROOT / "configs/tiny.py", objektive="dft"), "objektive"),
        (lambda base: dft.recipe(ROOT / "configs/tiny.py", **{"train.sede": 1}), "train.seed"),
        (lambda base: dft.recipe(ROOT / "configs/tiny.py", **{"train.seed": "1"}), "should be int"),
        (lambda base: dft.sample(base, "?", n=0), "n=0"),
        (lambda base: dft.sample(base, "?", n=2, temperature=0), "just 1"),
        (lambda base: dft.sample(base, "?", temperature=-1), "temperature=-1 should be from 0"),
        (lambda base: dft.sample(base, "?", temperature=float("nan")), "temperature=nan should be"),
        (lambda base: dft.sample(base, "?", top_k=-1), "top_k=-1 should be at least 0"),
        (lambda base: dft.sample(base, "?", top_p=0.0), "top_p=0.0 should be above 0"),
        (lambda base: dft.sample(base, "?", top_p=float("nan")), "top_p=nan should be above 0"),
        (lambda base: dft.sample(base, "?", max_new_tokens=0), "max_new_tokens=0 should be at"),
        (lambda base: dft.sample(base, "?", seed=2**32), "seed=4294967296 should be at least 0"),
        (lambda base: dft.sample(base, "?", stop=["a", ""]), "stop='' would end"),
        (lambda base: dft.sample(base, "\ud800"), "half a surrogate pair, which is not text"),
        (lambda base: dft.sample(base, "?", template="qwen-boxt"), "qwen-boxed"),
        (lambda base: dft.evaluate(base, ["labb"]), "did you mean 'lab'"),
        (lambda base: dft.evaluate(base, ["lab"], sample=3), "did you mean 'samples'"),
        (lambda base: dft.evaluate(base, ["lab"], samples=0), "samples=0 should be at least 1"),
        (lambda base: dft.evaluate(base, ["lab"], samples=2.0), "samples=2.0 should be int"),
        (lambda base: dft.load(assets.LAB, mesh={"foo": 2}), "mesh: no axis 'foo'"),
        (lambda base: given.mesh_sizes({"data": 1.0}), "mesh: data=1.0 should be int"),
        (lambda base: given.checked("t", None, Option(1.0, "")), "t=None should be float"),
        (lambda base: dft.load(assets.LAB, mesh={"fsdp": -2}), "mesh: fsdp=-2 should be at least"),
        (lambda base: dft.load(assets.LAB, compute_dtype="float16"), "compute_dtype='float16' is"),
        (lambda base: dft.score(base, "world(n=2)", max_rows=-1), "max_rows=-1 should be at least"),
        (lambda base: dft.finetune(None, {"train": 1}, "runs/none"), "config is of type dict"),
        (lambda base: dft.score(base, "none.jsonl"), "none.jsonl"),
        (lambda base: dft.score(base, "world(n=2)", rows="gsm"), "gsm8k"),
        (lambda base: dft.compare({}), "give evaluations"),
        (lambda base: dft.compare({"a": "none"}), "no scores.json"),
        (lambda base: dft.finetune(None, dft.get_default(), "runs/none"), "config.model.path"),
    ],
)
def test_mistakes_are_named(base, call, words):
    with pytest.raises(errors.UserError, match="(?s)" + words.replace("(", r"\(")):
        call(base)


def test_a_model_is_read_from_where_it_was_opened(tmp_path, monkeypatch):
    """Another one lies under its relative path where the program has gone since."""
    for place, model in (("here", assets.LAB), ("there", assets.LAB_CLEAN)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model").symlink_to(model)
    monkeypatch.chdir(tmp_path / "here")
    opened = dft.load("model")
    monkeypatch.chdir(tmp_path / "there")
    assert opened.identify()["sha256"] == dft.load(assets.LAB).identify()["sha256"]
    assert opened.path == str(tmp_path / "here" / "model")
    expected = jax.tree.leaves(dft.load(assets.LAB).params)
    for found, wanted in zip(jax.tree.leaves(opened.params), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_no_questions_have_no_completions(base):
    assert dft.sample(base, [], n=2) == []


def test_a_base_that_is_not_the_configs_is_refused(base, config, tmp_path):
    other = config.copy_and_resolve_references()
    other.model.path = str(assets.TINY)
    with pytest.raises(errors.UserError, match="but the model given is"):
        dft.finetune(base, other, tmp_path / "run")
