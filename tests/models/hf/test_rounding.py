"""What an export says that rounding takes of a fine-tune, and the type, template and origin that it
is written with.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from dft_jax import api, assets
from dft_jax.analysis import heldout as heldout_lib
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.commands import evaluate, export as export_command
from dft_jax.lab import recipe
from dft_jax.models.hf import rounding
from dft_jax.models.hf.export import MOST_LOST, export
from dft_jax.models.hf.fetch import params_fetch
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.hf.provenance import PROVENANCE_NAME, Origin, provenance
from dft_jax.models.hf.safetensors import Checkpoint, weights_dtype
from dft_jax.models.model import build
from dft_jax.runtime import errors, files
from tests.commands import run_command
from tests.conftest import make_mesh
from tests.faults import launch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The laboratory's model as a bfloat16 checkpoint, as pretrained models are."""
    folder = tmp_path_factory.mktemp("base") / "base"
    model = build(read_config(assets.LAB), make_mesh())
    export(load_params(Checkpoint(assets.LAB), model), model, assets.LAB, folder, dtype="bfloat16")
    (folder / PROVENANCE_NAME).unlink()
    return folder


def trained(base, scale, mesh=None):
    """The base with noise of this standard deviation on each weight, as float32."""
    model = build(read_config(base), mesh or make_mesh())
    params = flatten_dict(load_params(Checkpoint(base), model))
    for number, (path, leaf) in enumerate(sorted(params.items())):
        noise = scale * jax.random.normal(jax.random.key(number), leaf.shape, leaf.dtype)
        params[path] = jax.device_put(leaf + noise, leaf.sharding)
    return model, unflatten_dict(params)


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def oracle(base, exported_float32, dtype):
    """Whole arrays in float64, independently of the product's blocks and layers."""
    before, after = tensors_of(base), tensors_of(exported_float32)
    assert before.keys() == after.keys()
    old = np.concatenate([before[name].astype(np.float64).ravel() for name in sorted(before)])
    new = np.concatenate([after[name].ravel() for name in sorted(after)])
    written = new.astype(dtype).astype(np.float64)
    return {
        "weights": old.size,
        "changed": int((new != old).sum()),
        "changed_as_written": int((written != old).sum()),
        "update_norm": np.linalg.norm(new.astype(np.float64) - old),
        "lost_norm": np.linalg.norm(written - new.astype(np.float64)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_the_loss_is_that_of_whole_arrays(sizes, base, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "_AT_ONCE", 1000)  # no tensor is a whole number of blocks
    model, params = trained(base, 1e-5, make_mesh(*sizes))
    export(params, model, base, tmp_path / "out", dtype="float32")
    expected = oracle(base, tmp_path / "out", BFLOAT16)
    found = dataclasses.asdict(
        rounding.measure(params_fetch(params, model), model, Checkpoint(base), "bfloat16")
    )
    assert found.pop("dtype") == "bfloat16"
    assert found == pytest.approx(expected, rel=1e-12)
    assert (
        expected["changed"] > 0.9 * expected["weights"]
        and expected["lost_norm"] > 0.5 * expected["update_norm"]
    )


def test_auto_writes_float32_where_the_sources_type_loses_a_tenth(base, tmp_path, capfd):
    model, params = trained(base, 1e-5)
    written = export(params, model, base, tmp_path / "out")
    said = capfd.readouterr().err
    tensors = tensors_of(tmp_path / "out")
    assert {array.dtype for array in tensors.values()} == {np.dtype("float32")}
    config = files.read_json(tmp_path / "out/config.json")
    assert config["torch_dtype"] == "float32" and weights_dtype(tmp_path / "out") == "float32"
    held = json.loads((tmp_path / "out" / PROVENANCE_NAME).read_text())
    assert (held["dtype"], held["asked_dtype"], held["source_dtype"]) == (
        "float32",
        "auto",
        "bfloat16",
    )
    expected = oracle(base, tmp_path / "out", BFLOAT16)
    in_source = held["rounding_in_source_dtype"]
    assert in_source["lost_share"] == pytest.approx(expected["lost_norm"] / expected["update_norm"])
    assert (
        in_source["changed_share_as_written"]
        == expected["changed_as_written"] / expected["weights"]
    )
    assert (
        held["rounding"]["lost_norm"] == 0
        and held["rounding"]["dtype"] == "float32" == written.dtype
    )
    assert held["rounding"]["changed_share_as_written"] == held["rounding"]["changed_share"] > 0.9
    assert f"as bfloat16 {in_source['lost_share']:.2%} of the update's norm is lost" in said
    assert "written as float32, 0.00" in said and "float32 keeps all of it" in said
    again = load_params(Checkpoint(tmp_path / "out"), model)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("scale", [0.0, 0.05])
def test_auto_keeps_the_sources_type_where_it_loses_little(scale, base, tmp_path, capfd):
    """An update far above the rounding, and none at all: that comes out byte for byte."""
    model, params = trained(base, scale)
    written = export(params, model, base, tmp_path / "out")
    assert written.dtype == "bfloat16" and written.lost_share < MOST_LOST
    assert {array.dtype for array in tensors_of(tmp_path / "out").values()} == {BFLOAT16}
    assert "warning" not in capfd.readouterr().err
    if scale == 0.0:
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
        assert written.changed == written.changed_as_written == written.lost_norm == 0


def mixed(folder, base, of_embedding, of_others):
    """The base with its embedding in another type than all else."""
    copy = shutil.copytree(base, folder / "mixed")
    for name, array in (tensors := tensors_of(base)).items():
        tensors[name] = array.astype(of_embedding if "embed" in name else of_others)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    "types", [(BFLOAT16, np.float32), (np.float32, BFLOAT16)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("dtype", ["auto", "source"])
def test_each_tensor_keeps_its_own_type(dtype, types, base, tmp_path):
    """Some checkpoints keep norms in float32. Without training all comes out byte for byte."""
    source = mixed(tmp_path, base, *types)
    model = build(read_config(source), make_mesh())
    params = load_params(Checkpoint(source), model)
    written = export(params, model, source, tmp_path / "out", dtype=dtype)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert written.lost_norm == 0 and written.dtype == np.dtype(types[0]).name
    held = provenance(tmp_path / "out")
    assert len(held["other_dtypes"]) == len(tensors_of(base)) - 1
    assert set(held["other_dtypes"].values()) == {np.dtype(types[1]).name}


def test_what_is_lost_is_counted_in_each_tensors_type(base, tmp_path):
    """All but the embedding is float32: what was trained there is kept."""
    source = mixed(tmp_path, base, BFLOAT16, np.float32)
    model, params = trained(source, 1e-5)
    written = export(params, model, source, tmp_path / "out", dtype="source")
    tensors, old = tensors_of(tmp_path / "out"), tensors_of(source)
    assert {name for name in tensors if tensors[name].dtype == BFLOAT16} == {
        "model.embed_tokens.weight"
    }
    exact = np.asarray(params["embed"], np.float64)
    lost = np.linalg.norm(tensors["model.embed_tokens.weight"].astype(np.float64) - exact)
    assert written.lost_norm == pytest.approx(lost) and lost > 0
    assert tensors["model.norm.weight"].dtype == old["model.norm.weight"].dtype == np.float32
    export(params, model, source, tmp_path / "named", dtype="bfloat16")
    assert {array.dtype for array in tensors_of(tmp_path / "named").values()} == {BFLOAT16}


@pytest.mark.parametrize("dtype", ["source", "bfloat16"])
def test_a_type_asked_for_by_name_is_written_with_a_warning(dtype, base, tmp_path, capfd):
    model, params = trained(base, 1e-5)
    written = export(params, model, base, tmp_path / "out", dtype=dtype)
    assert written.dtype == "bfloat16"
    said = capfd.readouterr().err
    loses = f"rounding to bfloat16 loses {written.lost_share:.1%}"
    assert f"warning: config.export.dtype={dtype!r}: {loses}" in said
    held = provenance(tmp_path / "out")
    assert (
        held["rounding"]["lost_share"] == written.lost_share > 0.5
        and "rounding_in_source_dtype" not in held
    )


def test_random_weights_are_measured_against_their_rounding_alone(base, tmp_path, capfd):
    """They did not begin with the source's tensors, although it has some."""
    model = build(read_config(base), make_mesh())
    params = model.init(jax.random.key(0))
    written = export(params, model, base, tmp_path / "out", origin=Origin(init="random"))
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)]).astype(
        np.float64
    )
    assert written.dtype == "bfloat16" and written.update_norm == pytest.approx(
        np.linalg.norm(flat)
    )
    assert 0 < written.lost_share < 0.01 and "differ from the base" not in capfd.readouterr().err


def test_what_a_type_cannot_hold_is_lost(base):
    """300,000 is infinity as float16; JSON has none."""
    sums = rounding.tensor_sums(
        np.array([3e5, 1.0], np.float32), np.array([1.0, 1.0], np.float32), "float16"
    )
    found = rounding.Rounding("float16", 2, 1, 1, sums[3] ** 0.5, sums[4] ** 0.5)
    assert found.lost_share == np.inf and found.report()["lost_share"] is None
    json.dumps(found.report(), allow_nan=False)
    assert found.in_float32().lost_share == 0


@pytest.mark.parametrize(
    "held", [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}]
)
def test_each_key_for_the_type_says_what_was_written(held, base, tmp_path):
    source = shutil.copytree(base, tmp_path / "source")
    config = {
        key: value
        for key, value in files.read_json(source / "config.json").items()
        if "dtype" not in key
    }
    (source / "config.json").write_text(json.dumps(config | held))
    model, params = trained(base, 0.0)
    export(params, model, source, tmp_path / "same")
    assert (tmp_path / "same/config.json").read_bytes() == (source / "config.json").read_bytes()
    export(params, model, source, tmp_path / "out", dtype="float32")
    written = files.read_json(tmp_path / "out/config.json")
    keys = list(held) or ["torch_dtype"]
    assert {key: written[key] for key in written if "dtype" in key} == dict.fromkeys(
        keys, "float32"
    )


OTHERS = {"tool_use": "{{ 'tools' }}{{ messages }}", "rag": "{{ 'rag' }}{{ messages }}"}
OWN = "{% for m in messages %}<own>{{ m['content'] }}{% endfor %}"
TRAINED = "{% for m in messages %}<trained>{{ m['content'] }}{% endfor %}"
# Where the source has its templates -> its files.
PLACES = {
    "file": {"chat_template.jinja": OWN},
    "key": {"tokenizer_config.json": OWN},
    "list": {
        "tokenizer_config.json": [
            {"name": "default", "template": OWN},
            {"name": "rag", "template": "x"},
        ]
    },
    "none": {},
}


def with_templates(base, folder, place):
    source = shutil.copytree(base, folder / "source")
    for name, template in PLACES[place].items():
        if name == "chat_template.jinja":
            (source / name).write_text(template)
        else:
            settings = files.read_json(source / name) | {"chat_template": template}
            (source / name).write_text(json.dumps(settings))
    return source


def rendered(folder, **options):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, **options
    )


def test_additional_templates_are_kept(base, tmp_path):
    source = with_templates(base, tmp_path, "file")
    (source / "additional_chat_templates").mkdir()
    for name, text in OTHERS.items():
        (source / f"additional_chat_templates/{name}.jinja").write_text(text)
    model, params = trained(base, 0.0)
    export(params, model, source, tmp_path / "out")
    for name, text in OTHERS.items():
        assert (tmp_path / f"out/additional_chat_templates/{name}.jinja").read_text() == text
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == {
        "default": OWN,
        **OTHERS,
    }
    assert rendered(tmp_path / "out") == "<own>hi"


def test_an_additional_template_that_leads_elsewhere_is_refused(base, tmp_path):
    source = shutil.copytree(base, tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    (tmp_path / "secret").write_text("x")
    (source / "additional_chat_templates/a.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(errors.UserError, match="is a link out of its folder"):
        load_tokenizer(source)


@pytest.mark.parametrize("place", PLACES)
def test_the_template_a_run_was_trained_with_is_the_exports_own(place, base, tmp_path):
    """And the source's stays, by name, wherever it was."""
    source = with_templates(base, tmp_path, place)
    model, params = trained(base, 0.0)
    origin = Origin("dft", 8, "/somewhere/mine.jinja", TRAINED)
    export(params, model, source, tmp_path / "out", origin=origin)
    assert rendered(tmp_path / "out") == "<trained>hi"
    settings = files.read_json(tmp_path / "out/tokenizer_config.json")
    assert settings.get("chat_template", TRAINED) == TRAINED  # readers that look there first
    if place != "none":
        assert rendered(tmp_path / "out", chat_template="source") == "<own>hi"
    if place == "list":
        assert rendered(tmp_path / "out", chat_template="rag") == "x"
    held = provenance(tmp_path / "out")
    assert (held["template"], held["template_source"]) == ("tokenizer", "mine.jinja")
    assert (held["objective"], held["step"]) == ("dft", 8)


def lab_run(base, folder, **changes):
    """Two steps of the laboratory's SFT from the bfloat16 base."""
    config = recipe.lab_config("sft")
    config.model.path = str(base)
    config.data.train = config.data.heldout = "world(split=validation, n=32)"
    config.train.update(steps=2, global_batch=8)
    config.optimizer.learning_rate = 1e-5
    config.update_from_flattened_dict(changes)
    return api.train(config, folder)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    turn = "{{ '<answer>' if m['role'] == 'assistant' else '<trained>' }}{{ m['content'] }}"
    prompt = "{% if add_generation_prompt %}<answer>{% endif %}"
    (folder / "mine.jinja").write_text("{% for m in messages %}" + turn + "{% endfor %}" + prompt)
    lab_run(base, folder / "run", **{"data.template": str(folder / "mine.jinja")})
    (folder / "mine.jinja").write_text("changed afterwards")
    return folder / "run"


@pytest.mark.slow
def test_a_run_keeps_its_template_for_its_export(run, tmp_path, capfd, monkeypatch):
    """The file may have changed since, or be gone."""
    outcome = run_command(
        export_command.main, [f"--workdir={run}", f"--out={tmp_path}/out"], capfd, monkeypatch
    )
    assert outcome.code == 0 and "exported step 2" in outcome.stdout, outcome.stderr
    assert rendered(tmp_path / "out", add_generation_prompt=True) == "<trained>hi<answer>"
    assert provenance(tmp_path / "out")["template_source"] == "mine.jinja"
    (run / "chat_template.jinja").rename(run / "moved")  # a run of before it was kept
    outcome = run_command(
        export_command.main, [f"--workdir={run}", f"--out={tmp_path}/old"], capfd, monkeypatch
    )
    (run / "moved").rename(run / "chat_template.jinja")
    assert (
        outcome.code == 0
        and "the export keeps the checkpoint's own chat template" in outcome.stderr
    )
    assert not (tmp_path / "old/chat_template.jinja").exists()


@pytest.mark.slow
def test_an_export_reads_no_moments(run, tmp_path, capfd, monkeypatch):
    """They are twice as large as the parameters."""
    read = []
    monkeypatch.setattr(Checkpoints, "restore", lambda *_: pytest.fail("the whole state was read"))
    original = Checkpoints.restore_params
    monkeypatch.setattr(
        Checkpoints,
        "restore_params",
        lambda self, step, tree: read.append(step) or original(self, step, tree),
    )
    outcome = run_command(
        export_command.main, [f"--workdir={run}", f"--out={tmp_path}/out"], capfd, monkeypatch
    )
    assert outcome.code == 0 and read == [2]


def bytes_read():
    """By this process, of files, whether or not they were in memory."""
    with open("/proc/self/io") as counts:
        return int(counts.readline().split()[1])


def test_parameters_alone_are_read_from_a_checkpoint(tmp_path):
    from dft_jax.types import TrainState

    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arrays = {
        name: jax.random.normal(jax.random.key(i), (512, 1024))
        for i, name in enumerate(("w", "mu", "nu"))
    }
    state = TrainState(jnp.int32(1), {"w": arrays["w"]}, {"mu": arrays["mu"], "nu": arrays["nu"]})
    with Checkpoints(tmp_path, verify="off") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        before = bytes_read()
        abstract = {"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32, sharding=layout)}
        np.testing.assert_array_equal(checkpoints.restore_params(1, abstract)["w"], arrays["w"])
        took = bytes_read() - before
    assert took < 1.5 * arrays["w"].nbytes, f"{took / arrays['w'].nbytes:.2f} times the parameters"


def heldout(opened_from, out, capfd, monkeypatch):
    file = out.parent / "heldout.jsonl"
    rows = [{"prompt": f"{n} + {n} = ?", "completion": str(2 * n)} for n in range(10, 40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"--model={opened_from}", f"--heldout={file}", f"--out={out}", "--prompt=plain"]
    outcome = run_command(evaluate.main, options, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    return json.loads((out / heldout_lib.NAME).read_text()), outcome.stderr


@pytest.mark.slow
def test_a_run_and_its_export_are_evaluated_alike_and_named(base, tmp_path, capfd, monkeypatch):
    """The run's float32 masters, the float32 export and the bfloat16 one: the first two are the
    same numbers.
    """
    run = lab_run(base, tmp_path / "run", **{"optimizer.learning_rate": 1e-4})
    export(run.state.params, run.model, base, tmp_path / "auto")
    export(run.state.params, run.model, base, tmp_path / "rounded", dtype="source")
    of_run, said = heldout(tmp_path / "run", tmp_path / "a", capfd, monkeypatch)
    assert "evaluating run, step 2: its float32 weights, computed in float32" in said
    assert of_run["evaluated"] in said
    of_export, said = heldout(tmp_path / "auto", tmp_path / "b", capfd, monkeypatch)
    assert "evaluating auto: float32 weights" in said
    of_rounded, said = heldout(tmp_path / "rounded", tmp_path / "c", capfd, monkeypatch)
    assert "evaluating rounded: bfloat16 weights" in said
    assert of_run["metrics"] == of_export["metrics"]
    assert of_rounded["metrics"]["heldout/nll"] != of_run["metrics"]["heldout/nll"]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(base, tmp_path):
    options = (f"--config.model.path={base}", "--config.model.init=checkpoint")
    runs = tmp_path / "runs"
    runs.mkdir()
    codes = [
        launch.wait(process)
        for process in launch.start_many(runs / "two", 2, {}, arguments=options)
    ]
    assert codes == [0, 0], launch.log(runs / "two")[-3000:]
    held = provenance(runs / "two/export")
    expected = oracle(base, runs / "two/export", BFLOAT16)
    measured = held.get("rounding_in_source_dtype", held["rounding"])
    for name, value in expected.items():
        if held["dtype"] == "float32" or name in ("weights",):
            assert measured[name] == pytest.approx(value, rel=1e-12), name
    assert launch.log(runs / "two").count("export: ") >= 1
