"""A path that is not there never becomes the name of a stranger's repository."""

import json
import os

import huggingface_hub
import pytest
from ml_collections import ConfigDict

from dft_jax import assets, config as config_lib
from dft_jax.analysis import comparison
from dft_jax.data.sources import locate
from dft_jax.lm.checkpoint import base_of
from dft_jax.models.hf.locate import resolve
from dft_jax.planner import devices
from dft_jax.runtime import errors, hub
from dft_jax.training import earlier, identity, places
from dft_jax.training.preparation import prepare
from tests.tiny_trainer import tiny_config


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with runs/ in it, and a hub that fails the test when it is asked."""
    (tmp_path / "here" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(
            huggingface_hub, name, lambda *_, **__: pytest.fail("the hub was asked")
        )
    return tmp_path / "here"


def test_what_is_beside_folders_of_here_is_a_path(here):
    assert hub.id_of("Qwen/Qwen2.5-Math-1.5B", "model.path") == "Qwen/Qwen2.5-Math-1.5B"
    assert hub.id_of("gsm8k", "data file") == "gsm8k"
    assert hub.id_of("hf://runs/base", "model.path") == "runs/base"
    with pytest.raises(
        errors.UserError,
        match="model.path='runs/base': no such file or folder .*here.*hf://runs/base",
    ):
        hub.id_of("runs/base", "model.path")


@pytest.mark.parametrize("address", ["gs://runs/base", "s3://bucket", "https://host/a/b"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: resolve(path, "main"),
        lambda path: devices.read_architecture(path, "main"),
        lambda path: locate.read_rows(path, ConfigDict({"subset": "", "revision": ""}), "train"),
        comparison.read,
    ],
    ids=["model", "plan", "data", "evaluation"],
)
def test_an_address_is_no_path(read, address, here):
    with pytest.raises(errors.UserError, match=f"'{address}': only files and folders of this"):
        read(address)


@pytest.mark.parametrize(
    "read",
    [
        lambda: resolve("runs/base", "main"),
        lambda: devices.read_architecture("runs/base", "main"),
        lambda: locate.read_rows("runs/data", ConfigDict({"subset": "", "revision": ""}), "train"),
    ],
    ids=["model", "plan", "data"],
)
def test_nothing_of_the_hub_is_asked_for_by_a_path(read, here):
    with pytest.raises(
        errors.UserError, match="no such file or folder .looked from .*, where runs is a folder"
    ):
        read()


def test_a_hub_id_is_said_to_be_one_with_its_commit(here, monkeypatch, capfd):
    asked = []
    snapshot = here / "models--nobody--base" / "snapshots" / ("c" * 40)

    def download(hub_id, revision, allow_patterns):
        asked.append((hub_id, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("nobody/base", "main") == resolve("hf://runs/base", "v1") == snapshot
    assert asked == [("nobody/base", "main"), ("runs/base", "v1")]
    assert (
        f"note: model nobody/base is the hub's, main is commit {'c' * 40}" in capfd.readouterr().err
    )
    assert hub.commit_of(snapshot) == "c" * 40 and hub.commit_of(here) is None
    base = base_of("nobody/base", "main", "checkpoint", snapshot, "aa")
    assert (base["path"], base["revision"], base["commit"]) == ("nobody/base", "main", "c" * 40)


def test_a_run_keeps_absolute_paths_and_refuses_a_path_that_is_not_there_any_more(
    here, monkeypatch
):
    (here / "runs" / "base").mkdir()
    (here / "runs" / "train.jsonl").touch()
    given = {
        "model.path": "runs/base",
        "data.train": "runs/train.jsonl",
        "data.heldout": "",
        "eval.benchmark_data": "",
    }
    config = tiny_config(**given)
    kept = places.with_absolute_paths(config)
    assert places.paths(kept) == {key: str(here / path) for key, path in given.items() if path}
    assert places.paths(config) == {key: path for key, path in given.items() if path}
    assert identity.digest(config) != identity.digest(kept), "so evaluations go by what was given"
    workdir = here / "runs" / "mine"
    earlier.refuse_moved(config, workdir)  # there is no run yet
    workdir.mkdir()
    (workdir / "config.json").write_text(config_lib.to_json(kept))
    earlier.refuse_moved(config, workdir)
    os.mkdir(here / "elsewhere")
    monkeypatch.chdir(here / "elsewhere")
    with pytest.raises(errors.UserError) as error:
        earlier.refuse_moved(config, workdir)
    assert [line.partition(":")[0] for line in error.value.problems] == [
        "config.model.path='runs/base'",
        "config.data.train='runs/train.jsonl'",
    ]
    assert f"the run began with {here}/runs/base: give that" in str(error.value)
    earlier.refuse_moved(kept, workdir)
    config.data.train = str(assets.TINY / "train.jsonl")
    with pytest.raises(
        errors.UserError, match="config.model.path='runs/base': no such file .* the run began with"
    ):
        prepare(config, workdir)
    config.model.path = "Qwen/Qwen2.5-Math-1.5B"
    # what is meant is another thing, which the weights will show
    earlier.refuse_moved(config, workdir)
    (workdir / "config.json").write_text(json.dumps({"model": []}))
    earlier.refuse_moved(config, workdir)
