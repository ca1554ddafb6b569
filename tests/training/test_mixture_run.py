"""A run on a mixture, killed and resumed: the same batches and weights, and the account of each
source.
"""

import hashlib
import json

import jax
import numpy as np
import pytest

from dft_jax import api, assets
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.data.batches import Packer
from dft_jax.lm.run import open_run
from dft_jax.runtime import errors
from tests.tiny_trainer import tiny_config

SOURCES = ("gsm8k", "math")


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


def mixture_config(shared, **overrides):
    """Real rows of two formats, of which the second comes round more than twice in six steps."""
    data = shared / "data"
    gsm8k = {"path": str(data / "gsm8k_train.jsonl"), "name": "gsm8k", "rows": "gsm8k_unmarked"}
    math = {"path": str(data / "math500.jsonl"), "name": "math", "rows": "math", "max_rows": 11}
    heldout = {"path": str(data / "gsm8k_test.jsonl"), "rows": "gsm8k"}
    return tiny_config(
        **{
            "data.train": [
                gsm8k | {"weight": 1, "max_rows": 40},
                math | {"weight": 2, "template": "plain"},
            ],
            "data.heldout": [heldout | {"name": "gsm8k"}, math | {"rows": "math"}],
            "data.template": "qwen25-math-cot",
            "data.max_length": 500,
            "data.max_rows": 0,
            "data.max_lost_fraction": 1.0,
            "data.prompt_weight": 0.25,
            "train.global_batch": 8,
            "train.steps": 6,
            "checkpoint.every": 2,
            "eval.max_examples": 6,
            "objective": "dft",
        }
        | overrides
    )


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def hashed(monkeypatch):
    """SHA-256 of every training batch that is packed from now on, by the lines it is from."""
    found = {}
    pack = Packer.pack

    def note(self, example_ids):
        packed = pack(self, example_ids)
        content = b"".join(np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(packed.batch))
        found[packed.origins] = hashlib.sha256(content).hexdigest()
        return packed

    monkeypatch.setattr(Packer, "pack", note)
    return found


@pytest.mark.slow
def test_a_mixture_that_is_killed_ends_as_one_that_is_not(shared, tmp_path, monkeypatch, hashed):
    whole = api.train(mixture_config(shared), tmp_path / "whole")
    batches_of_whole = dict(hashed)
    hashed.clear()
    save = Checkpoints.save

    def die(self, step, *arguments):
        save(self, step, *arguments)
        self.wait()
        if step == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", die)
        with pytest.raises(Killed):
            api.train(mixture_config(shared), tmp_path / "killed")
    resumed = api.train(mixture_config(shared), tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.state.params)
    assert hashed == batches_of_whole and len(hashed) >= 6
    kept = [
        {name: value for name, value in row.items() if not name.startswith("speed/")}
        for folder in ("whole", "killed")
        for row in rows_of(tmp_path / folder)
    ]
    assert kept[: len(kept) // 2] == kept[len(kept) // 2 :]

    # The account of the run is what its rows add up to.
    report = json.loads((tmp_path / "killed/data_report.json").read_text())
    steps = [row for row in rows_of(tmp_path / "killed") if "train/nll" in row]
    assert list(report["train"]["sources"]) == list(report["drawn"]) == list(SOURCES)
    for name in SOURCES:
        drawn = report["drawn"][name]
        for what in ("examples", "tokens", "trained_tokens"):
            assert drawn[what] == sum(row[f"data/{name}/{what}"] for row in steps) > 0
        assert drawn["epochs"] == steps[-1][f"data/{name}/epochs"]
    assert report["drawn"]["math"]["epochs"] > 2
    trained = sum(report["drawn"][name]["trained_tokens"] for name in SOURCES)
    assert trained == sum(row["train/supervised_tokens"] for row in steps)
    kept_rows = [report["train"]["sources"][name]["rows"] for name in SOURCES]
    held = sum(rows["used_whole"] + rows["truncated"] for rows in kept_rows)
    assert report["length"]["n_examples"] == held, "an epoch draws as many as there are"

    # Held-out means of each source, by their weights, are those of all.
    last = [row for row in rows_of(tmp_path / "killed") if "heldout/nll" in row][-1]
    total = sum(last[f"heldout/{name}/weight"] for name in SOURCES)
    mean = sum(last[f"heldout/{n}/weight"] * last[f"heldout/{n}/nll"] for n in SOURCES) / total
    np.testing.assert_allclose(mean, last["heldout/nll"], rtol=1e-5)

    # It is the run that it says: another share is another run, and it opens as any other.
    assert open_run(tmp_path / "killed").step == 6
    changed = mixture_config(shared)
    changed.data.train[1]["weight"] = 3
    with pytest.raises(errors.UserError, match=r"mixture: .*drawn_in_an_epoch"):
        api.train(changed, tmp_path / "killed")
    changed = mixture_config(shared, **{"data.prompt_weight": 0.5})
    with pytest.raises(errors.UserError, match=r"config\.data\.prompt_weight: 0\.25 "):
        api.train(changed, tmp_path / "killed")


def test_a_run_keeps_where_its_sources_are(tmp_path, monkeypatch):
    """A relative path is absolute in config.json, and its absence is named when it is resumed."""
    from dft_jax.training import earlier, places

    monkeypatch.chdir(assets.TINY)
    given = ["train.jsonl", {"path": "heldout.jsonl", "weight": 2, "name": "other"}]
    config = tiny_config(**{"data.train": given})
    assert places.paths(config) == {
        "model.path": str(assets.TINY),
        "data.train[0]": "train.jsonl",
        "data.train[1]": "heldout.jsonl",
    }
    absolute = places.with_absolute_paths(config)
    assert absolute.data.train == [
        str(assets.TINY / "train.jsonl"),
        {"path": str(assets.TINY / "heldout.jsonl"), "weight": 2, "name": "other"},
    ]
    assert config.data.train == given, "the config itself is as it was"
    (tmp_path / "config.json").write_text(json.dumps(absolute.to_dict()))
    earlier.refuse_moved(config, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        errors.UserError, match=r"config.data.train\[0\]='train.jsonl': no such file"
    ):
        earlier.refuse_moved(config, tmp_path)


def test_new_keys_say_nothing_of_runs_that_do_not_use_them():
    """So a run from before they were there resumes; where they are used, a change is refused."""
    from dft_jax.training.identity import kept_on_resume

    keys = {"data.weight_field", "data.prompt_weight"}
    assert not keys & kept_on_resume(tiny_config()).keys()
    used = kept_on_resume(tiny_config(**{"data.weight_field": "w", "data.prompt_weight": 0.5}))
    assert keys <= used.keys()
