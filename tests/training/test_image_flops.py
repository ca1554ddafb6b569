"""FLOPs of the tower: as XLA counts them, and in the rates that a run reports."""

import dataclasses

import jax
import numpy as np
import pytest

from dft_jax.data import batches, image_rows
from dft_jax.models import parts as parts_lib
from dft_jax.models.model import build, with_tower
from dft_jax.models.parts import VISION
from dft_jax.models.vision import build_tower
from dft_jax.training import metrics
from dft_jax.training.throughput import Throughput
from dft_jax.types import ImageBatch
from tests.image_examples import SIZES, SPEC, image_examples

# Wide, so that what is neither a product nor a sum of products is little of it, and of one block:
# XLA counts the body of a loop once.
WIDE = dataclasses.replace(
    SPEC.vision, depth=1, hidden_size=256, num_heads=4, intermediate_size=512, out_size=128
)


def counted_by_xla(vision, grid, parts, mesh):
    """FLOPs of one image, forward, and backward for what `parts` names."""
    tower = build_tower(vision, mesh)
    n_patches = grid[0] * grid[1]
    numbers = jax.ShapeDtypeStruct((1, n_patches), np.int32)
    pixels = jax.ShapeDtypeStruct((1, n_patches, vision.patch_values), np.uint8)
    images = ImageBatch(pixels, *[numbers] * 4, None, None)
    trained, rest = parts_lib.divide({VISION: tower.abstract_params}, parts)

    def total(trained, rest, images):
        params = parts_lib.merge(trained, rest or {})[VISION]
        return (tower.apply(params, images) ** 2).sum()

    function = total if parts == "text" else jax.value_and_grad(total)
    compiled = jax.jit(function).lower(trained, rest, images).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["text", "merger", "all"])
def test_a_whole_image_attends_as_xla_counts(parts, mesh1):
    """Forward alone where the tower is frozen, and what backward takes of each part."""
    vision, grid = dataclasses.replace(WIDE, full_blocks=(0,)), (16, 16)
    found = metrics.tower_flops(vision, grid, parts)
    assert found == pytest.approx(counted_by_xla(vision, grid, parts, mesh1), rel=0.03)


@pytest.mark.slow
def test_windows_attend_as_xla_counts(mesh1):
    """The blocks compute three bands where one window is of use."""
    vision, grid, band = dataclasses.replace(WIDE, full_blocks=()), (8, 8), 64
    assert vision.window_patches == band
    in_vain = 2 * 2 * vision.hidden_size * 2 * band * band
    found = metrics.tower_flops(vision, grid, "text") + in_vain
    assert found == pytest.approx(counted_by_xla(vision, grid, "text", mesh1), rel=0.03)


@pytest.mark.parametrize("grid", [(4, 6), (20, 12), (16, 16), (34, 22)])
def test_windows_at_the_edge_are_cut_off(grid):
    """Pairs of patches with the same window, one by one."""
    vision = SPEC.vision
    counts = np.bincount(image_rows.by_windows(grid, vision).windows_I)
    assert metrics._seen_in_windows(vision, grid) == (counts**2).sum()


def test_rates_count_the_patches_that_there_are(mesh1, monkeypatch):
    """Those of eight examples, as they are in the batch, and none of padding."""
    peak = 1e12
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: peak)
    model = with_tower(build(SPEC, mesh1), "all")
    (step,) = batches.SequentialBatches(
        image_examples(), mesh1, global_batch=8, row_length=128, vision=SPEC.vision
    )
    throughput = Throughput(model, mean_length=20.0)
    throughput.rates({"tokens": 32}, step)
    values = throughput.rates({"tokens": 32}, step)
    expected = step.real_tokens * throughput.flops
    images = step.batch.images
    n_seen = 0
    for rows_I, cols_I, images_I in zip(
        images.rows_BI[0], images.cols_BI[0], images.images_BI[0], strict=True
    ):
        for number in range(1, images_I.max() + 1):
            here = images_I == number
            grid = int(rows_I[here].max()) + 1, int(cols_I[here].max()) + 1
            assert grid[0] * grid[1] == here.sum()
            expected += metrics.tower_flops(SPEC.vision, grid, "all")
            n_seen += 1
    assert n_seen == sum(map(len, SIZES))
    assert values["speed/mfu"] * values["speed/step_s"] * peak == pytest.approx(expected)
