"""A run's folder: what a run is made of, said once; what is left of an earlier run there passes for
nobody's.
"""

import importlib.machinery
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import pytest

from dft_jax import api, assets
from dft_jax.api.benchmarks import benchmark_evaluators
from dft_jax.checkpoints import manifest
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.data import templates
from dft_jax.data.examples import Examples
from dft_jax.evals import runner
from dft_jax.lab import recipe
from dft_jax.lm.checkpoint import open_config
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.hf.safetensors import SINGLE_NAME, Checkpoint
from dft_jax.models.model import build
from dft_jax.runtime import errors, files
from dft_jax.training import admission, earlier, identity, metrics_log
from dft_jax.types import TrainState
from tests.conftest import make_mesh
from tests.training.test_metrics_log import Service, wandb_that

OLD_FINGERPRINT = {"config.train.seed": 0, "steps": 4}  # of a version that looked at no weights
FINGERPRINT = OLD_FINGERPRINT | {"weights_sha256_of_sample": "aa"}


EXAMPLES = Examples(
    [], {"path": "openai/gsm8k", "commit": "c" * 40, "sha256": "dd", "rows": {}}, []
)


def lab_config(**overrides):
    config = recipe.lab_config("sft")
    config.update_from_flattened_dict(overrides)
    return config


def open_workdir(folder, fingerprint=FINGERPRINT, **overrides):
    folder.mkdir(exist_ok=True)
    config = lab_config(**overrides)
    checkpoints, step, run = admission.open_workdir(
        folder, config, fingerprint, assets.LAB, EXAMPLES
    )
    checkpoints.close()
    return step, run


def save(folder, step, run):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, TrainState(jnp.int32(step), {"w": jnp.zeros(4)}, ()), run)


def pretend_checkpoint(workdir):
    """As far as `has_checkpoint` looks."""
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    (workdir / "checkpoints" / "2" / manifest.NAME).write_text("{}")


def test_a_run_says_once_what_it_is_made_of(tmp_path):
    step, run = open_workdir(tmp_path / "run")
    assert step is None and re.fullmatch("[0-9a-f]{16}", run["run_id"])
    weights = files.digest(Checkpoint(assets.LAB).files)
    assert run["base"] == {
        "path": str(assets.LAB),
        "revision": None,
        "commit": None,
        "init": "checkpoint",
        "sha256": weights,
    }
    assert run["data"] == {"path": "openai/gsm8k", "commit": "c" * 40, "sha256": "dd"}
    assert open_workdir(tmp_path / "run")[1]["run_id"] != run["run_id"], (
        "it begins from nothing again"
    )
    save(tmp_path / "run", 3, run)
    step, resumed = open_workdir(tmp_path / "run", **{"model.path": str(assets.LAB_CLEAN)})
    assert step == 3 and resumed == run


def test_a_folder_says_what_its_run_is_made_of(tmp_path, monkeypatch):
    """From wherever it is read: paths are absolute. Of a run of before there were ids nobody knows."""
    monkeypatch.chdir(assets.LAB.parent)

    def described(run):
        admission.describe_run(
            tmp_path, lab_config(**{"model.path": "lab"}), "masked", {"train": {}}, run
        )
        return [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("config", "env")]

    config, environment = described(
        {"run_id": "5f0c", "base": {"path": "x"}, "fingerprint": {}, "changes": []}
    )
    assert config["model"]["path"] == str(assets.LAB)
    assert (environment["run_id"], environment["base"], environment["attention"]) == (
        "5f0c",
        {"path": "x"},
        "masked",
    )
    assert described({"fingerprint": {}, "changes": []})[1]["run_id"] is None


@pytest.mark.parametrize(
    "starts, is_refused",
    [("aa", False), ("ab", True), ("abb", True), ("aba", True), ("a-a", False), ("a-b", True)],
)
def test_a_best_step_is_of_steps_that_were_measured_alike(starts, is_refused, tmp_path):
    """Each start has other held-out examples, or none; only the last one compares."""
    account = {}
    for name in starts:
        account = {"train": {}} | ({} if name == "-" else {"heldout": {"sha256": name}})
        account = admission.with_other_heldout(tmp_path, lab_config(), account)
        files.write_json(tmp_path / "data_report.json", account)
    best = lab_config(**{"checkpoint.best": "heldout/nll"})
    again = {"heldout": account["heldout"]}
    if not is_refused:
        assert admission.with_other_heldout(tmp_path, best, again) == again
        return
    with pytest.raises(errors.UserError, match="measured on other held-out examples"):
        admission.with_other_heldout(tmp_path, best, again)


def test_a_damaged_account_is_written_anew_unless_steps_are_compared(tmp_path):
    (tmp_path / "data_report.json").write_text('{"heldout": ')
    account = {"heldout": {"sha256": "a"}}
    assert admission.with_other_heldout(tmp_path, lab_config(), account) == account
    best = lab_config(**{"checkpoint.best": "heldout/nll"})
    with pytest.raises(errors.UserError, match="data_report.json:1: not JSON .*; remove it"):
        admission.with_other_heldout(tmp_path, best, account)


def test_where_data_was_found_is_said_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").touch()
    here, gone = (
        Examples([], EXAMPLES.report | {"path": path}, []) for path in ("train.jsonl", "x/y")
    )
    assert identity.data_of(here)["path"] == str(tmp_path / "train.jsonl")
    assert identity.data_of(gone) == {"path": "x/y", "commit": "c" * 40, "sha256": "dd"}


def test_a_run_that_draws_its_weights_has_no_base_to_hash(tmp_path):
    base = open_workdir(tmp_path, **{"model.init": "random"})[1]["base"]
    assert base["init"] == "random" and base["sha256"] is None


def test_other_weights_under_the_same_path_are_another_run(tmp_path):
    save(tmp_path, 3, {"fingerprint": FINGERPRINT, "changes": []})
    with pytest.raises(errors.UserError, match="weights_sha256_of_sample: 'aa' -> 'bb'"):
        open_workdir(tmp_path, FINGERPRINT | {"weights_sha256_of_sample": "bb"})
    with pytest.raises(errors.UserError, match="weights_sha256_of_sample: 'aa' -> 'absent'"):
        open_workdir(tmp_path, OLD_FINGERPRINT)


def test_a_run_of_before_there_were_ids_goes_on(tmp_path):
    save(tmp_path, 3, {"fingerprint": OLD_FINGERPRINT, "changes": []})
    step, run = open_workdir(tmp_path)
    assert (step, run) == (3, {"fingerprint": FINGERPRINT, "changes": []})


def test_the_fingerprint_tells_weights_apart(tmp_path):
    config, found = lab_config(), []
    for source in (assets.LAB, assets.LAB_CLEAN):
        config.model.path = str(source)
        _, model, tokenizer = open_config(config)
        found.append(identity.fingerprint(config, source, model, tokenizer, EXAMPLES, 4))
    assert list(errors.differences(*found)) == ["weights_sha256_of_sample"]


def test_evaluations_of_an_earlier_run_are_set_aside(tmp_path, capfd):
    for number in (1, 2):
        (tmp_path / "eval" / "2").mkdir(parents=True)
        (tmp_path / "eval" / "2" / "scores.json").write_text(str(number))
        _, run = open_workdir(tmp_path)
        assert not list((tmp_path / "eval").iterdir())
        assert (tmp_path / f"eval.old-{number}" / "2" / "scores.json").read_text() == str(number)
        assert (
            f"eval: 2 set aside in eval.old-{number}: the run begins from nothing"
            in capfd.readouterr().err
        )


def test_a_run_that_goes_on_keeps_the_evaluations_up_to_there(tmp_path, capfd):
    """A later one is of a checkpoint that was damaged or removed, whose step is made again, perhaps
    by other code.
    """
    save(tmp_path, 3, open_workdir(tmp_path)[1])
    for name in ("2", "3", "4", "10", "mine"):
        (tmp_path / "eval" / name).mkdir(parents=True)
    for _ in range(2):
        assert open_workdir(tmp_path)[0] == 3
        assert sorted(file.name for file in (tmp_path / "eval").iterdir()) == ["2", "3", "mine"]
    assert [file.name for file in tmp_path.glob("eval.old-*")] == ["eval.old-1"]
    assert (
        "eval: 10, 4 set aside in eval.old-1: the run begins again from step 3"
        in capfd.readouterr().err
    )


@pytest.fixture(scope="module")
def laboratory():
    model = build(read_config(assets.LAB), make_mesh())
    return model, load_tokenizer(assets.LAB)


def benchmarks(workdir, laboratory, **overrides):
    asked = {
        "eval.benchmarks": "lab",
        "eval.max_problems": 2,
        "eval.context": 192,
        "eval.samples": 1,
    }
    model, tokenizer = laboratory
    config = lab_config(**asked | overrides)
    (evaluator,) = benchmark_evaluators(config, tokenizer, model, workdir)
    return evaluator


def test_an_evaluation_is_of_the_run_that_made_it(tmp_path, laboratory):
    """Another run with the same config in its folder is refused its scores; one without an id keeps
    its own.
    """
    made = benchmarks(tmp_path, laboratory)

    def begin(**run):
        origin = identity.origin_of(run, lab_config(), EXAMPLES)
        made.begin(4, 0, origin)
        return runner._identity(made.plan, made.model, {**origin, "step": 4})

    mine, older = begin(run_id="a1", base={"path": "x"}), begin()
    assert (
        mine["run_id"] == "a1" and "origin" not in mine and older.keys() == mine.keys() - {"run_id"}
    )
    runner._begin(made.plan, tmp_path / "eval" / "4", mine)
    begin(run_id="a1", base={"path": "moved"})
    with pytest.raises(errors.UserError, match="run_id: 'a1' -> 'b2'"):
        begin(run_id="b2", base={})
    shutil.rmtree(tmp_path / "eval")
    runner._begin(made.plan, tmp_path / "eval" / "4", older)
    begin()


def test_a_new_run_is_not_asked_as_the_one_before_it(tmp_path, laboratory):
    """Neither with its prompt nor with its date: both are taken from what a run that goes on has
    said.
    """
    (tmp_path / "eval" / "2").mkdir(parents=True)
    (tmp_path / "eval" / "2" / "evaluation.json").write_text(json.dumps({"prompt": "qwen-boxed"}))
    (tmp_path / "config.json").write_text(json.dumps({"data": {"date": "2001-02-03"}}))
    config = lab_config()
    assert benchmarks(tmp_path, laboratory).plan.settings.prompt == "plain"
    assert earlier.first_date(config, tmp_path) == templates.today()
    pretend_checkpoint(tmp_path)
    assert benchmarks(tmp_path, laboratory).plan.settings.prompt == "qwen-boxed"
    assert earlier.first_date(config, tmp_path) == "2001-02-03"
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "2.damaged")
    assert not manifest.has_checkpoint(tmp_path)


@pytest.mark.slow
def test_other_weights_under_the_same_path_get_their_own_scores(tmp_path, monkeypatch):
    """Begun anew, as a damaged run is, in the same folder with the same config; and their own
    curve.
    """
    asked = []
    service = wandb_that(lambda **options: asked.append(options["id"]) or Service())
    service.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", service)
    base = shutil.copytree(assets.LAB, tmp_path / "base")
    config = lab_config(
        **{"model.path": str(base), "train.steps": 2, "train.global_batch": 8, "eval.every": 0}
    )
    config.data.train = config.data.heldout = "world(split=validation, n=16)"
    config.eval.update(benchmarks="lab", max_problems=8, context=192, samples=2)
    config.log.wandb_project = "p"

    def scores():
        run = api.train(config, tmp_path / "run")
        rows = [
            json.loads(line)
            for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        ]
        (row,) = (row for row in rows if "eval/lab_T0_avg_at_1" in row)
        return run, row["eval/lab_T0_avg_at_1"], row["eval/lab_T1_mean_token_entropy"]

    first, right, entropy = scores()
    checkpoint = Checkpoint(base)
    noise = {
        name: jax.random.normal(jax.random.key(0), shape)
        for name, (shape, _) in checkpoint.headers.items()
    }
    hf_save(noise, base / SINGLE_NAME)
    with pytest.raises(errors.UserError, match="weights_sha256_of_sample"):
        api.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    second, wrong, other_entropy = scores()
    assert right > 0.5 > wrong and entropy != other_entropy
    assert asked == [
        metrics_log.board_id(first.workdir, run.identity["run_id"]) for run in (first, second)
    ]
    assert first.identity["base"]["sha256"] != second.identity["base"]["sha256"]
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    assert (environment["run_id"], environment["base"]) == (
        second.identity["run_id"],
        second.identity["base"],
    )


def hf_save(tensors, file):
    from safetensors.flax import save_file

    save_file(tensors, file, metadata={"format": "pt"})
