"""Meshes over devices of several slices, or nodes: stand-ins with the attributes that JAX reads."""

import dataclasses

import numpy as np
import pytest

from dft_jax import sharding


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of a v5e slice of 2 × 4, which is one host here."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def slices(count, platform="tpu", kind="TPU v5 lite"):
    """The chips of so many slices, not in the order of their numbers."""
    chips = []
    for number in range(8 * count):
        n_slice, place = divmod(number, 8)
        coords = (place % 2, place // 2, 0)
        chips.append(Chip(number, n_slice, coords, n_slice, platform, kind))
    return chips[::-1]


@pytest.fixture
def devices(monkeypatch):
    """devices(chips): all that JAX has."""

    def put(chips):
        monkeypatch.setattr(sharding.jax, "devices", lambda: chips)

    return put


@pytest.mark.parametrize(
    "sizes",
    [*[(2, 8, 1, 1, 1), (4, 4, 1, 1, 1), (4, 2, 2, 1, 1)], (2, 1, 2, 4, 1), (2, 1, 1, 1, 8)],
)
def test_only_data_goes_from_slice_to_slice(sizes):
    chips = slices(2)
    array = sharding.across_slices(sharding.Sizes(*sizes), chips, sharding.slice_count(chips))
    assert array.shape == sizes and {chip.id for chip in array.flat} == set(range(16))
    first, second = np.split(array, 2)
    assert {chip.slice_index for chip in first.flat} == {0}
    assert {chip.slice_index for chip in second.flat} == {1}


def test_the_mesh_of_several_slices_has_all_their_devices(devices):
    devices(slices(2))
    mesh = sharding.make_mesh(data=-1, fsdp=4, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 2, "sequence": 1, "expert": 1}
    assert mesh.axis_types == sharding.AXIS_TYPES
    assert [chip.slice_index for chip in mesh.devices[:, 0, 0, 0, 0]] == [0, 1]
    assert sharding.tpu_slices() == 2


@pytest.mark.parametrize(
    "sizes, is_legal",
    [((-1, 8, 1), True), ((2, -1, 1), True), ((-1, 16, 1), False), ((1, 8, 2), False)],
)
def test_a_mesh_whose_data_cannot_be_cut_by_slices_is_refused(sizes, is_legal):
    assert sharding.problems(sharding.Sizes(*sizes), 16) == []
    found = sharding.problems(sharding.Sizes(*sizes), 16, tpu_slices=2)
    if is_legal:
        assert found == []
    else:
        (line,) = found
        assert line.startswith("config.mesh: ") and "over 2 TPU slices: data=1 is no" in line
        assert "divides the 8 devices of a slice" in line


@pytest.mark.parametrize("kind", ["TPU v6 lite", "TPU v5", "TPU v5 lite"])
@pytest.mark.parametrize("sizes", [(1, 8, 2, 1), (2, 8), (1, 2, 2, 2, 2), (1, 1, 1, 16), (1, 16)])
def test_sizes_need_not_be_those_of_the_grid(kind, sizes):
    """Of 4 × 4 chips; jax.make_mesh gives up on the first of them, but for v5e."""
    chips = [Chip(n, 0, (n // 4, n % 4, 0), 0, device_kind=kind) for n in range(16)]
    array = sharding.device_array(chips, sizes)
    assert array.shape == sharding.Sizes(*sizes)
    assert {chip.id for chip in array.flat} == set(range(16))


def test_devices_of_gpu_nodes_may_share_parameters(devices):
    """JAX calls a node of GPUs a slice: across two of them fsdp is usual, where data cannot go."""
    chips = slices(2, "gpu", "NVIDIA H100")
    devices(chips)
    assert sharding.tpu_slices() == 1
    across = sharding.make_mesh(data=1, fsdp=16, tensor=1)
    assert [chip.id for chip in across.devices.flat] == list(range(16))
    within = sharding.make_mesh(data=2, fsdp=-1, tensor=1)
    assert [chip.slice_index for chip in within.devices[:, 0, 0, 0, 0]] == [0, 1]
