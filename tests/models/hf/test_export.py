"""Import and export: bytes in, the same bytes out; temporary folders only until the end."""

import dataclasses
import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import dft_jax as dft
from dft_jax import assets
from dft_jax.lm import published
from dft_jax.models.hf import load as hf, tensor_files
from dft_jax.models.hf.export import export
from dft_jax.models.hf.export_folder import require_replaceable
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.provenance import Origin
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build
from dft_jax.runtime import errors, files
from tests.conftest import GOLDEN, make_mesh


def load(case, mesh, **options):
    model = build(read_config(GOLDEN / case), mesh, **options)
    return model, hf.load_params(Checkpoint(GOLDEN / case), model)


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tensors_of(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


CASES = sorted(file.parent.name for file in GOLDEN.glob("*/model.safetensors"))


@pytest.mark.parametrize("case", CASES)
def test_import_then_export_is_byte_identical(case, tmp_path):
    """float32 and bf16 checkpoints through float32 parameters on eight devices: the very same
    files.
    """
    model, params = load(case, make_mesh(2, 2, 2))
    export(params, model, GOLDEN / case, tmp_path / "out")
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        if (GOLDEN / case / file).exists():
            assert digest(tmp_path / "out" / file) == digest(GOLDEN / case / file), file
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_sharded_import_and_export(tmp_path, mesh1):
    """Two shards in, many small ones out, and in again: the same tensors, each shard within its
    size.
    """
    model, params = load("qwen2_sharded", mesh1)
    export(params, model, GOLDEN / "qwen2_sharded", tmp_path / "out", max_shard_gb=2e-5)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    before, after = tensors_of(GOLDEN / "qwen2_sharded"), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    again = hf.load_params(Checkpoint(tmp_path / "out"), model)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_other_dtype_is_written_into_config(tmp_path, mesh1):
    model, params = load("qwen2_tied", mesh1)
    export(params, model, GOLDEN / "qwen2_tied", tmp_path / "out", dtype="bfloat16")
    assert files.read_json(tmp_path / "out/config.json")["dtype"] == "bfloat16"
    assert {array.dtype for array in tensors_of(tmp_path / "out").values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_tied_models_export_no_head(tmp_path, mesh1):
    model, params = load("qwen2_tied", mesh1)
    export(params, model, GOLDEN / "qwen2_tied", tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")


def test_an_interrupted_export_leaves_no_final_name_and_an_old_one_is_replaced(
    tmp_path, mesh1, monkeypatch
):
    model, params = load("qwen2_tied", mesh1)
    source, out = GOLDEN / "qwen2_tied", tmp_path / "out"

    def full_disk(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "_save", full_disk)
        with pytest.raises(errors.UserError, match="no space left on device"):
            export(params, model, source, out)
    assert not out.exists() and list(tmp_path.iterdir()) == []
    export(params, model, source, out)
    first = digest(out / "model.safetensors")
    doubled = jax.tree.map(lambda x: 2 * x, params)
    export(doubled, model, source, out)
    assert digest(out / "model.safetensors") != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_link_stays_one_and_the_export_lies_where_it_leads(tmp_path, mesh1):
    """Three times: of the second the link was in the way, as what had been replaced."""
    model, params = load("qwen2_tied", mesh1)
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "export")
    for _ in range(3):
        export(params, model, GOLDEN / "qwen2_tied", tmp_path / "out")
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "export" / "model.safetensors").exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "out"]
        assert [p.name for p in (tmp_path / "disk").iterdir()] == ["export"]


def test_what_is_no_export_is_not_replaced(tmp_path):
    """Before, a folder of exports was deleted for one of them."""
    lm = dft.load(assets.LAB)
    (tmp_path / "exports" / "first").mkdir(parents=True)
    (tmp_path / "notes").write_text("mine")
    for name in ("exports", "notes"):
        with pytest.raises(errors.UserError, match=f"{name} is there and no export .*move it away"):
            dft.export(lm, tmp_path / name)
    assert "params" not in vars(lm), "weights were read"
    assert (tmp_path / "exports" / "first").is_dir() and (tmp_path / "notes").is_file()
    (tmp_path / "exports" / "first").rmdir()
    require_replaceable(tmp_path / "exports")
    for name in ("dft_jax.json", "model.safetensors"):
        (tmp_path / "exports" / name).write_text("")
    require_replaceable(tmp_path / "exports")


def test_what_decides_the_prompt_is_carried_on(tmp_path):
    """Of a model that was no run's: what it says itself, and nothing where it says nothing."""
    lm = dft.load(assets.LAB)
    for name, template, date in (("base", "", ""), ("tuned", "qwen-boxed", "2026-07-26")):
        dft.export(dataclasses.replace(lm, trained=template, date=date), tmp_path / name)
        again = dft.load(tmp_path / name)
        assert (again.trained, again.date) == (template, date)
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}:")
    jinja = dataclasses.replace(lm, trained=str(tmp_path / "mine.jinja"))
    dft.export(jinja, tmp_path / "jinja")
    again = dft.load(tmp_path / "jinja")
    assert again.trained == "tokenizer"
    assert again.tokenizer.get_chat_template() == "{{ messages[0].content }}:"


@pytest.mark.slow
def test_host_memory_of_import_is_about_one_tensor(monkeypatch, mesh1):
    """Never more than one tensor is read before it is placed: reads and placements alternate."""
    events = []
    view = Checkpoint.view
    monkeypatch.setattr(
        Checkpoint, "view", lambda self, name: events.append("read") or view(self, name)
    )
    for name in ("_write_rows", "_placed"):
        write = getattr(hf, name)
        monkeypatch.setattr(hf, name, lambda *a, write=write: events.append("write") or write(*a))
    load("qwen2_untied", mesh1)
    assert events == ["read", "write"] * (len(events) // 2) and len(events) > 20


def test_parameters_lie_sharded(mesh8):
    """Each device holds an eighth or a quarter of the large arrays, not a copy."""
    _, params = load("llama", mesh8)
    up = params["layers"]["mlp"]["up"]["kernel"]
    # tensor 2 × fsdp 2, copied over data 2
    assert up.addressable_shards[0].data.size == up.size // 4
    embed = params["embed"]
    assert embed.addressable_shards[0].data.size == embed.size // 4


def test_an_export_says_what_it_is_of_but_not_where_a_folder_lies(tmp_path):
    """It may be published. Its evaluations say the same."""
    base = {
        "path": str(assets.LAB),
        "revision": None,
        "commit": None,
        "init": "checkpoint",
        "sha256": "aa",
    }
    origin = Origin(
        step=3, path=str(assets.LAB), run={"run_id": "5f0c", "base": base, "fingerprint": {}}
    )
    said = origin.report()
    assert (said["run_id"], said["base"]) == ("5f0c", base | {"path": "lab"})
    assert str(assets.LAB.parent) not in json.dumps(said)
    (tmp_path / "dft_jax.json").write_text(json.dumps(said))
    assert published._exported_from(tmp_path) == {
        "run_id": "5f0c",
        "step": 3,
        "base": base | {"path": "lab"},
    }
    older = Origin(path="Qwen/Q", revision="v1").report()
    assert (older["run_id"], older["base"]) == (
        None,
        {"path": "Qwen/Q", "revision": "v1", "init": "checkpoint"},
    )
    (tmp_path / "dft_jax.json").write_text(json.dumps(Origin().report()))
    assert published._exported_from(tmp_path) == {} == published._exported_from(assets.LAB)
