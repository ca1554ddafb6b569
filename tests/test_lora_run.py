"""A run with adapters from the command's side: what it saves, resumes, exports, and how that opens."""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import dft_jax as dft
from dft_jax import api, assets
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.lm.run import open_run
from dft_jax.models.hf import peft
from dft_jax.models.hf.export import export
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.provenance import Origin
from dft_jax.models.model import build, parameter_count
from dft_jax.runtime import errors, files
from tests.conftest import make_mesh
from tests.tiny_trainer import tiny_config

pytestmark = pytest.mark.slow
LORA = {"lora.rank": 4, "lora.alpha": 7.0, "train.steps": 4, "checkpoint.every": 2}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_base(folder, seed):
    """A checkpoint of the tiny model, in bfloat16."""
    model = build(read_config(assets.TINY), make_mesh())
    params, origin = model.init(jax.random.key(seed)), Origin(init="random")
    export(params, model, assets.TINY, folder, dtype="bfloat16", origin=origin)
    (folder / "dft_jax.json").unlink()
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "base", seed=0)


def config_of(base, **overrides):
    return tiny_config(
        **{
            "model.path": str(base),
            "model.init": "checkpoint",
            "mesh.data": -1,
            **LORA,
            **overrides,
        }
    )


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A finished run, and its folder."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return api.train(config_of(base), workdir)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "out"
    dft.export(trained.lm, out, dtype="float32")
    return out


def test_a_checkpoint_holds_adapters_alone(trained):
    """Three numbers for each: of the adapters and of two moments; nothing of the base."""
    n_trained = parameter_count(trained.model.trainable)
    checkpoints = Checkpoints(trained.workdir / "checkpoints")
    with checkpoints:
        metadata = checkpoints.orbax.metadata(trained.workdir / "checkpoints" / "4")
        sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(metadata.item_metadata["state"])]
    assert 3 * n_trained <= sum(sizes) < 3 * n_trained + 10
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(trained.state.params))


def test_it_resumes_with_the_same_bits(trained, base, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    again = api.train(config_of(base), workdir)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(again.state.params),
        jax.device_get(trained.state.params),
    )


def refusal(config, workdir):
    with pytest.raises(errors.UserError) as caught:
        api.train(config, workdir)
    return str(caught.value)


def test_another_base_or_rank_is_another_run(trained, base, tmp_path):
    other = make_base(tmp_path / "base", seed=1)
    said = refusal(config_of(other), trained.workdir)
    sha256 = [files.digest([folder / "model.safetensors"]) for folder in (base, other)]
    assert f"base_sha256: '{sha256[0]}' -> '{sha256[1]}'" in said
    assert "lora.rank: 4 -> 8" in refusal(config_of(base, **{"lora.rank": 8}), trained.workdir)
    # The same base in another place is the same run.
    moved = shutil.copytree(base, tmp_path / "moved")
    workdir = shutil.copytree(trained.workdir, tmp_path / "run")
    assert api.train(config_of(moved), workdir).step == 4


def test_a_run_whose_base_has_changed_is_not_opened(trained, base, tmp_path):
    workdir = shutil.copytree(trained.workdir, tmp_path / "run")
    other = make_base(tmp_path / "other", seed=1)
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["path"] = str(other)
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UserError, match="give the base that it was trained on"):
        dft.load(workdir).params  # noqa: B018


def test_the_export_is_the_base_plus_the_adapter(trained, exported, base):
    before, after = load_file(base / "model.safetensors"), load_file(exported / "model.safetensors")
    pairs = peft.pairs_of(trained.state.params, trained.model)
    assert before.keys() == after.keys() and len(pairs) == 2 * len(TARGETS)
    for name, tensor in after.items():
        if name in pairs:
            pair = pairs[name]
            product = pair.b_OZ.astype(np.float64) @ pair.a_ZI.astype(np.float64)
            expected = before[name].astype(np.float64) + 7 / 4 * product
            np.testing.assert_allclose(tensor, expected, atol=1e-6)
            assert np.abs(tensor - before[name].astype(np.float32)).max() > 1e-3
        else:
            np.testing.assert_array_equal(tensor, before[name].astype(np.float32))


def test_what_rounds_it_is_reported(trained, base, tmp_path):
    """In bfloat16 most of so small an update would be lost, which "auto" does not do."""
    lost = dft.export(trained.lm, tmp_path / "bfloat16", dtype="bfloat16", what="merged")
    assert 0 < lost.lost_share < 1 and lost.changed_as_written < lost.changed
    after = load_file(tmp_path / "bfloat16" / "model.safetensors")
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.split(".")[-2] not in TARGETS:
            assert tensor.tobytes() == after[name].tobytes()
    assert not (tmp_path / "bfloat16" / "adapter").exists()


def test_run_export_and_adapter_are_one_model(trained, exported):
    data = str(assets.TINY / "train.jsonl")
    scores = {}
    for name, lm in {
        "base": dft.load(trained.config.model.path),
        "in memory": trained.lm,
        "run": dft.load(trained.workdir),
        "merged": dft.load(exported),
        "adapter": dft.load(exported / "adapter"),
    }.items():
        scores[name] = dft.score(
            lm, data, rows="gsm8k", template="plain", max_rows=4, max_length=160
        )
    for name in ("run", "merged", "adapter"):
        np.testing.assert_allclose(scores[name].loss_T, scores["in memory"].loss_T, atol=1e-5)
    assert np.abs(scores["base"].loss_T - scores["run"].loss_T).max() > 0.1


def test_an_adapter_names_its_base(exported, trained, base):
    folder = exported / "adapter"
    config = files.read_json(folder / peft.CONFIG_NAME)
    assert config["base_model_name_or_path"] == str(base)
    assert config["r"] == 4 and config["lora_alpha"] == 7 and not config["use_rslora"]
    assert config["target_modules"] == sorted(TARGETS)
    held = files.read_json(folder / peft.BASE_NAME)
    assert held["sha256"] == files.digest([base / "model.safetensors"])
    identity = dft.load(folder).identify()
    assert identity["sha256"] == peft.digest(folder) and identity["base_sha256"]


def test_the_mean_p_of_end_tokens_is_said_before_training(base, tmp_path, capfd):
    """Against the scores of the base; with a mixture whose sources end alike, and once a run."""
    held = str(assets.TINY / "heldout.jsonl")
    sources = [held, {"path": held, "name": "again", "weight_field": "w"}]
    rows = [
        {"question": "1+1?", "answer": "2", "w": 3.0},
        {"question": "a?", "answer": "b", "w": 1},
    ]
    file = tmp_path / "weighed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources[1]["path"] = str(file)
    config = config_of(base, **{"data.heldout": sources, "eval.max_examples": 8})
    api.train(config, tmp_path / "run")
    said = capfd.readouterr().err
    lm, p = dft.load(str(base)), []
    for path, most in ((held, 8), (str(file), 0)):
        template = config.data.template
        scored = dft.score(lm, path, rows="gsm8k", template=template, max_rows=most)
        p += list(scored.p_T[scored.ids_T == lm.tokenizer.eos_token_id])
    assert len(p) == 10
    [line] = [line for line in said.splitlines() if "end tokens" in line]
    assert f"end tokens of held-out answers have a mean p of {np.mean(p):.2g} before" in line
    api.train(config, tmp_path / "run")
    assert "end tokens" not in capfd.readouterr().err


def test_a_base_is_hashed_once(exported, tmp_path, monkeypatch):
    """To open an adapter, and to say of what it is."""
    hashed = []
    digest_of = hashlib.file_digest

    def counted(handle, name):
        hashed.append(Path(handle.name).name)
        return digest_of(handle, name)

    base = make_base(tmp_path / "base", seed=0)
    monkeypatch.setattr(hashlib, "file_digest", counted)
    lm = dft.load(exported / "adapter", base=base)
    first = lm.identify()
    assert hashed.count("model.safetensors") == 1
    # Written anew, it is looked at again.
    weights = base / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert lm.identify()["base_sha256"] != first["base_sha256"]
    assert hashed.count("model.safetensors") == 2


def test_an_adapter_on_another_base_is_refused(exported, tmp_path):
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(errors.UserError, match="give the base that it was trained on"):
        dft.load(exported / "adapter", base=other)
    with pytest.raises(errors.UserError, match="no adapter"):
        dft.load(other, base=other)
    folder = shutil.copytree(exported / "adapter", tmp_path / "adapter")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(errors.UserError, match="tokenizer.json is not that of the base"):
        dft.load(folder)


def test_an_adapter_alone(trained, tmp_path):
    assert dft.export(trained.lm, tmp_path / "out", what="adapter") is None
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "dft_jax.json",
    ]
    card = (tmp_path / "out/README.md").read_text()
    assert 'library_name: "peft"' in card and "lora.rank = " in card
    again = dft.load(tmp_path / "out")
    with pytest.raises(errors.UserError, match="copy that"):
        dft.export(again, tmp_path / "again", what="adapter")


def test_training_goes_on_from_an_adapter(exported, trained, base, tmp_path):
    """Step 0 of the second run is the end of the first."""
    folder = exported / "adapter"
    overrides = {"lora.rank": 0, "lora.alpha": 16.0, "lora.adapter": str(folder)}
    overrides["optimizer.learning_rate"] = 1e-30
    run = api.train(config_of(base, **overrides), tmp_path / "run")
    assert (run.config.lora.rank, run.config.lora.alpha) == (4, 7.0)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(run.state.params),
        jax.device_get(trained.state.params),
    )
    assert open_run(tmp_path / "run").model.lora == trained.model.lora
    said = refusal(config_of(base, **overrides | {"lora.rank": 8}), tmp_path / "other")
    assert "config.lora.rank=8, but the adapter that lora.adapter names has 4" in said


MISTAKES = {
    "rank": ({"lora.rank": 65}, "config.lora.rank=65 is more than the 32 rows"),
    "random base": ({"model.init": "random"}, "the random base would be in no file"),
    "target": ({"lora.targets": "q_proj,v_prj"}, "did you mean 'v_proj'?"),
    "folder": ({"lora.adapter": "nowhere"}, "config.lora.adapter='nowhere': no such folder"),
    "what": (
        {"lora.rank": 0, "export.what": "adapter"},
        "config.export.what='adapter', but lora.rank=0",
    ),
    "alpha": ({"lora.alpha": 0.0}, "config.lora.alpha=0.0 should be above 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said(name, base, tmp_path):
    overrides, expected = MISTAKES[name]
    assert expected in refusal(config_of(base, **overrides), tmp_path / "run")


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_what_is_said_at_the_start(products, base, tmp_path, capfd):
    asked = {"lora.targets": "attention", "train.steps": 1, "model.compute_dtype": products}
    api.train(config_of(base, **asked), tmp_path / "run")
    said = capfd.readouterr().err
    n_params = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32))
    assert (
        f"lora: 8 of 14 matrices, {n_params / 1e6:.3g} M parameters of rank 4, times 1.75" in said
    )
    is_noted = "note: model.param_dtype=float32 of a bfloat16 checkpoint" in said
    assert is_noted == (products == "bfloat16")
