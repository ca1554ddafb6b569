"""The loss where devices along `fsdp` share their rows: on meshes, and what the program moves."""

import math
import re

import jax
import numpy as np
import pytest

from dft_jax import config as config_lib, sharding
from dft_jax.losses import devices, fused, objectives
from dft_jax.losses.devices import Inputs, Projection
from dft_jax.models.spec import DecoderSpec, LayerSpec, Rope
from dft_jax.planner import layouts, memory
from experiments.planner import check
from tests.conftest import make_mesh
from tests.losses.test_fused import losses_and_gradients
from tests.marks import slow_but

B, L, D, V = 8, 6, 16, 64  # fewer positions than entries of the vocabulary
MESHES = [(1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 1, 8), (1, 4, 2), (1, 2, 1, 1, 4)]
NAMES = ["dft", "sft", "sentence", "asft"]
SHARING = dict(zip(MESHES, [True, True, False, False, True, True], strict=True))


def problem():
    rng = np.random.default_rng(0)
    mask_BL = rng.random((B, L)) < 0.6
    mask_BL[1] = False
    targets_BL = rng.integers(V, size=(B, L)).astype(np.int32)
    return rng.normal(size=(B, L, D)), rng.normal(size=(V, D)), targets_BL, mask_BL


def shapes(rows=B, length=L, vocab=V, width=D, reference_width=None):
    """Inputs that are shapes alone."""

    def projection(width):
        hidden = jax.ShapeDtypeStruct((rows, length, width), np.float32)
        return Projection(hidden, jax.ShapeDtypeStruct((vocab, width), np.float32))

    reference = projection(reference_width) if reference_width else None
    integers = jax.ShapeDtypeStruct((rows, length), np.int32)
    return Inputs(projection(width), reference, integers, integers)


@pytest.mark.parametrize("mesh", MESHES)
def test_rows_are_shared_along_fsdp(mesh):
    """Without it the equality below would be that of another program."""
    layout = devices.layout_of(shapes(), make_mesh(*mesh))
    assert layout.shares_rows == SHARING[mesh]


@pytest.mark.parametrize(
    "sizes",
    [
        {"length": 8},  # as many positions as entries of the vocabulary
        {"vocab": 60},
        {"width": 12},
        {"reference_width": 12},
    ],
)
def test_rows_are_not_shared_where_it_does_not_pay_or_divide(sizes):
    layout = devices.layout_of(shapes(**sizes), make_mesh(1, 8, 1))
    assert not layout.shares_rows and layout.row_axes == ("fsdp",)


@pytest.mark.parametrize(
    "mesh, name",
    slow_but(
        [((1, 8, 1), "dft"), ((1, 4, 2), "sentence"), ((2, 2, 2), "asft")],
        [(mesh, name) for mesh in MESHES for name in NAMES],
        slow=[(mesh, NAMES[number % len(NAMES)]) for number, mesh in enumerate(MESHES)],
    ),
)
def test_equals_dense_on_every_mesh(mesh, name):
    with jax.enable_x64(True):
        objective = objectives.make_objective(name)
        *found_ways, expected = losses_and_gradients(
            objective, *problem(), make_mesh(*mesh), chunk_tokens=5, scale=0.3
        )
        for found in found_ways:
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


# ---- what the compiled training step moves between devices


def moved(hlo: str, kinds: str) -> list[int]:
    """Elements of each array that comes out of a collective of these kinds, `all-gather|…`."""
    sizes = []
    for result in re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", hlo):
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", result):
            sizes.append(math.prod(int(size) for size in dimensions.split(",") if size))
    return sizes


def assert_no_whole_head_moves(hlo, head):
    """Neither the head, of so many elements, nor its gradient is gathered or summed whole."""
    found = moved(hlo, "all-gather|all-reduce")
    assert found and max(found) < head
    # An eighth of the head comes in, an eighth of its gradient goes out.
    assert sum(moved(hlo, "all-to-all")) == 2 * head // 8


@pytest.mark.parametrize("name", ["dft", "sentence"])
def test_no_whole_head_moves_for_the_loss(name):
    mesh = make_mesh(1, 8, 1)

    def loss(hidden_BLD, head_VD, targets_BL, mask_BL):
        arguments = (hidden_BLD, head_VD, targets_BL, mask_BL, targets_BL)
        objective = objectives.make_objective(name)
        return fused.loss_and_stats(*arguments, objective=objective, chunk_tokens=16, mesh=mesh)[0]

    rows, parameter = sharding.named(mesh, sharding.BATCH_AXES), sharding.named(mesh, None, "fsdp")
    step = jax.jit(
        jax.grad(loss, argnums=(0, 1)),
        in_shardings=(rows, parameter, rows, rows),
        out_shardings=(rows, parameter),
    )
    hidden_BLD, head_VD, targets_BL, mask_BL = problem()
    arguments = (hidden_BLD.astype(np.float32), head_VD.astype(np.float32), targets_BL, mask_BL)
    assert_no_whole_head_moves(step.lower(*arguments).compile().as_text(), V * D)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_no_whole_head_moves_for_a_training_step(tied):
    config = config_lib.get_default()
    config.data.max_length = 64
    config.train.loss_chunk_tokens = 64
    config.model.attention_block = 64
    spec = DecoderSpec(
        vocab_size=2048,
        hidden_size=64,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        intermediate_size=128,
        rms_epsilon=1e-6,
        tie_embeddings=tied,
        max_length=64,
        layers=(LayerSpec(Rope(1e4)),) * 2,
    )
    layout = layouts.StepLayout((1, 8, 1), "none", rows=1, accumulation=2)
    hlo = check.compile_step(memory.Planner(config, spec), layout, jax.devices()).as_text()
    assert max(moved(hlo, "all-gather|all-reduce")) < spec.vocab_size * spec.hidden_size
