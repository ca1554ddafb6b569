"""Import and export shared out: every byte is read once and written once, over devices and processes.

The oracle is numpy: what the files hold, put in its place by name.
"""

import json
import math
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from dft_jax import sharding
from dft_jax.models.hf import digests, fetch, load as hf, tensor_files
from dft_jax.models.hf.export import export
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.merging import Pair, merged
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tensors import tensor_table
from dft_jax.models.model import build
from dft_jax.runtime import errors, files
from tests import xla
from tests.conftest import GOLDEN, make_mesh
from tests.faults import launch
from tests.marks import slow_but

# Stacks of layers; several parameters in a tensor; experts.
CASES = {"qwen2_bf16": "bfloat16", "phi3_long": "float32", "qwen3_moe": "float32"}
# Copies, cuts of one axis, of two and of three; numbers of devices that divide few rows.
MESHES = [(8, 1, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2), (1, 1, 8, 1), (1, 5, 1, 1), (3, 1, 1, 1)]
FEW = [("phi3_long", (2, 2, 2, 1)), ("qwen2_bf16", (1, 5, 1, 1))]
MOST_GB = 2e-5  # of a file, so that there are some of each process


def spoilt(case, folder):
    """A copy of a golden checkpoint with values in it that arithmetic would change: -0, and such as
    are less than the least normal number.
    """
    source = shutil.copytree(GOLDEN / case, folder / case)
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        for array in tensors.values():
            tiny = np.finfo(np.float32).smallest_subnormal * 2.0**17  # bfloat16 has it too
            array.flat[0], array.flat[-1] = -0.0, tiny
        save_file(tensors, file, metadata={"format": "pt"})
    return source


def expected(source, model):
    """Parameters by path, each put together from the files' tensors."""
    stored = arrays_of(source)
    leaves = flatten_dict(model.abstract_params)
    params = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    for tensor in tensor_table(model):
        rows = stored[tensor.name][tensor.row_slice or slice(None)]
        place = params[tensor.path][tensor.index]
        place[...] = rows.reshape(place.shape).astype(place.dtype)
    return params


def assert_as_expected(params, wanted):
    """Every device holds its part, to the bit."""
    found = flatten_dict(params)
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        for shard in array.addressable_shards:
            assert np.asarray(shard.data).tobytes() == wanted[path][shard.index].tobytes(), path


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


class CountedView:
    """A view of a tensor that notes how many bytes are read of it at a time."""

    def __init__(self, view, counts):
        self.view, self.counts = view, counts

    def __getitem__(self, rows):
        array = self.view[rows]
        self.counts.append(array.nbytes)
        return array


def count_reads(monkeypatch):
    counts = []
    view = Checkpoint.view
    monkeypatch.setattr(
        Checkpoint, "view", lambda self, name: CountedView(view(self, name), counts)
    )
    return counts


def arrays_of(source):
    found = {}
    for file in source.glob("*.safetensors"):
        found |= load_file(file)
    return found


def size_of(source):
    return sum(array.nbytes for array in arrays_of(source).values())


ALL = [(case, mesh) for case in CASES for mesh in MESHES]
SOME = [("qwen2_bf16", MESHES[0]), *[("qwen3_moe", mesh) for mesh in MESHES[1:4]]]


@pytest.mark.parametrize(("case", "sizes"), slow_but(FEW, ALL, slow=SOME))
def test_every_mesh_has_the_bits_of_the_files_and_writes_them_again(
    case, sizes, tmp_path, monkeypatch
):
    source = spoilt(case, tmp_path)
    model = build(read_config(source), make_mesh(*sizes), param_dtype=CASES[case])
    counts = count_reads(monkeypatch)
    params = load_params(Checkpoint(source), model)
    assert_as_expected(params, expected(source, model))
    for array, leaf in zip(
        jax.tree.leaves(params), jax.tree.leaves(model.abstract_params), strict=True
    ):
        assert array.sharding == leaf.sharding
    assert sum(counts) == size_of(source), "a byte was read twice, or not at all"
    export(params, model, source, tmp_path / "out")
    written = bytes_of(tmp_path / "out")
    assert written["model.safetensors"] == bytes_of(source)["model.safetensors"]


def test_a_shorter_type_is_rounded_to_before_devices_exchange(mesh8):
    model = build(read_config(GOLDEN / "qwen2_tied"), mesh8, param_dtype="bfloat16")
    params = load_params(Checkpoint(GOLDEN / "qwen2_tied"), model)
    assert_as_expected(params, expected(GOLDEN / "qwen2_tied", model))


def of_four_layers(mesh, spec):
    """A stack [4, 64, 96] cut as `spec`, and its layout."""
    layout = sharding.named(mesh, None, *spec)
    return jax.ShapeDtypeStruct((4, 64, 96), jnp.float32, sharding=layout), layout


@pytest.mark.parametrize("spec", [("tensor", "fsdp"), ("fsdp", "tensor"), (None, "fsdp")])
def test_devices_exchange_no_more_than_they_need(spec, mesh8):
    """XLA knows no short way between some layouts, and has all of a tensor on each device then."""
    stack, layout = of_four_layers(mesh8, spec)
    over_all = sharding.named(mesh8, mesh8.axis_names, None)
    rows = jax.ShapeDtypeStruct((64, 96), jnp.float32, sharding=over_all)
    reading = hf._write_rows.lower(stack, rows, (jnp.int32(0),), layout).compile()
    n_bytes = 64 * 96 * 4
    n_parts = math.prod(mesh8.shape[axis] for axis in sharding.cutting(layout))
    assert reading.memory_analysis().temp_size_in_bytes <= 2 * n_bytes // n_parts + 1024
    indices = (jax.ShapeDtypeStruct((8,), jnp.int32),)
    of_one = sharding.named(mesh8, *spec)
    fetching = fetch._spread.lower(stack, indices, of_one).compile()
    assert fetching.memory_analysis().temp_size_in_bytes <= 2 * n_bytes + 1024
    for program in (reading, fetching):
        assert "all-to-all" in program.as_text() and "all-reduce" not in program.as_text()
    assert "all-gather" not in fetching.as_text()


def test_a_bad_value_is_found_by_the_device_that_reads_it_and_nothing_is_read_after(
    tmp_path, monkeypatch
):
    source = shutil.copytree(GOLDEN / "qwen2_tied", tmp_path / "base")
    tensors = load_file(source / "model.safetensors")
    first, *_ = [tensor.name for tensor in tensor_table(build(read_config(source), make_mesh()))]
    tensors[first].flat[-1] = np.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    counts = count_reads(monkeypatch)
    with pytest.raises(errors.UserError, match=rf"{first} holds NaN or infinity"):
        load_params(Checkpoint(source), build(read_config(source), make_mesh(8)))
    assert sum(counts) == tensors[first].nbytes


def test_rows_of_an_update_have_the_bits_of_the_whole():
    """Of rank 64 one row alone goes another way through BLAS, and is another in its last bits."""
    rng = np.random.default_rng(0)
    a_ZI, b_OZ = rng.normal(size=(64, 8192)), rng.normal(size=(300, 64))
    b_OZ[7] = 0
    pair = Pair(a_ZI.astype(np.float32), b_OZ.astype(np.float32), 0.3)
    base_OI = rng.normal(size=(300, 8192)).astype(np.float32)
    base_OI[7] = -0.0
    whole_OI = merged(base_OI, pair)
    exact_OI = base_OI + 0.3 * (pair.b_OZ.astype(np.float64) @ pair.a_ZI)
    np.testing.assert_allclose(whole_OI, exact_OI, atol=2e-5)
    for n_rows in (1, 37, 128, 150):
        parts = []
        for first in range(0, 300, n_rows):
            rows = slice(first, min(first + n_rows, 300))
            parts.append(merged(base_OI[rows], pair, rows))
        assert np.concatenate(parts).tobytes() == whole_OI.tobytes()
    assert whole_OI[7].tobytes() == base_OI[7].tobytes(), "a row that nothing is added to"


# ---- several processes

DISK = "no space left on device"


def one_of_many(number, count, devices, port, folder, case, last):
    """What each process does: import, export, and at last something that one of them cannot do."""
    os.environ["XLA_FLAGS"] = xla.flags(devices)
    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    counts = []
    view = Checkpoint.view
    Checkpoint.view = lambda self, name: CountedView(view(self, name), counts)
    source = GOLDEN / case
    sizes = (1, count * devices, 1, 1)
    model = build(read_config(source), make_mesh(*sizes))
    params = load_params(Checkpoint(source), model)
    assert_as_expected(params, expected(source, model))
    read, saved = sum(counts), []
    save = tensor_files._save
    tensor_files._save = lambda tensors, file: saved.append(file.name) or save(tensors, file)
    export(params, model, source, folder / "out", max_shard_gb=MOST_GB)
    shared_out = list(saved)
    # The same name on a disk of each host: whoever does not see process 0's folder writes nothing.
    export(params, model, source, folder / f"disk{number}/out", max_shard_gb=MOST_GB)
    alone = saved[len(shared_out) :]
    hashed, sha256_of = [], files.sha256_of
    files.sha256_of = lambda paths: sha256_of([hashed.append(p.name) or p for p in paths])
    digest = digests.weights_digest_by_all(folder / "out")
    said = ""
    try:
        last(number, source, model, params, folder)
    except errors.UserError as error:
        said = str(error)
    result = {"read": read, "saved": shared_out, "alone": alone, "said": said}
    result |= {"hashed": hashed, "digest": digest}
    (folder / f"{number}.json").write_text(json.dumps(result))


def fill_a_disk(number, source, model, params, folder):
    """Of process 1, when it has its second file to write."""

    def full(tensors, file):
        raise OSError(DISK)

    if number == 1:
        tensor_files._save = full
    doubled = jax.tree.map(lambda x: 2 * x, params)
    export(doubled, model, source, folder / "out", max_shard_gb=MOST_GB)


def spoil_a_value(number, source, model, params, folder):
    """In the rows that process 1 reads."""
    read = hf._read_finite

    def spoilt(checkpoint, name, *rest):
        if number == 1 and name.endswith("layers.1.mlp.down_proj.weight"):
            raise errors.UserError(f"{name} holds NaN")
        return read(checkpoint, name, *rest)

    hf._read_finite = spoilt
    load_params(Checkpoint(source), model)


JOBS = {
    "two processes": (2, 2, "phi3_long", spoil_a_value, "process 1: .*down_proj.weight holds NaN"),
    "four processes": (4, 1, "qwen3_moe", fill_a_disk, f"process 1: .*/out: the export .*{DISK}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_processes_share_out_what_is_read_and_written(job, tmp_path):
    count, devices, case, last, words = JOBS[job]
    port = launch.free_port()
    started = []
    for number in range(count):
        arguments = (number, count, devices, port, tmp_path, case, last)
        started.append(launch.context().Process(target=one_of_many, args=arguments))
        started[-1].start()
    assert [launch.wait(process) for process in started] == [0] * count
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(count)]
    # What one process writes, of parameters that never were in several.
    source = GOLDEN / case
    model = build(read_config(source), make_mesh())
    params = load_params(Checkpoint(source), model)
    export(params, model, source, tmp_path / "alone", max_shard_gb=MOST_GB)
    alone = bytes_of(tmp_path / "alone")
    assert bytes_of(tmp_path / "out") == alone == bytes_of(tmp_path / "disk0/out")
    # Bytes read: all of them once, and each process its share, but for rows that do not divide.
    rows_at_most = sum(array.nbytes // len(array) for array in arrays_of(source).values())
    assert sum(one["read"] for one in found) == size_of(source)
    for one in found:
        assert one["read"] <= size_of(source) / count + devices * rows_at_most
    # Files written: each by one process, by turns; all by process 0 where no other sees the folder.
    names = [name for name in alone if name.startswith("model-")]
    assert len(names) > 2 * count
    for number, one in enumerate(found):
        assert one["saved"] == names[number::count]
        assert one["alone"] == (names if number == 0 else [])
        # Each file is hashed by one of them, and all know the hash of the whole.
        assert one["hashed"] == names[number::count]
        assert one["digest"] == digests.weights_digest(tmp_path / "alone")
    # What one cannot do ends all, with one message; an earlier export is as it was.
    for one in found:
        assert one["said"] == found[0]["said"]
    assert re.search(words, found[0]["said"])
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
