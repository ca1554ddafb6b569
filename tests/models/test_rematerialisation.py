"""Layers' inputs on the host: which arrays of the traced step lie there, where it is refused, and
that experts give the gradients of `full`, bit for bit. Training: tests/training/test_offload.py.
"""

import types

import jax
import numpy as np
import pytest

from dft_jax.losses import objectives
from dft_jax.models import rematerialisation
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import build
from dft_jax.models.rematerialisation import require
from dft_jax.runtime import errors
from dft_jax.training.inputs import open_model
from dft_jax.training.step import make_loss
from tests import jaxprs
from tests.conftest import GOLDEN, make_mesh
from tests.marks import slow_but
from tests.models.attention.test_sequence import random_batch
from tests.models.test_spec import decoder
from tests.tiny_trainer import tiny_config

HOST = jax.memory.Space.Host
B, L, D = 2, 12, 16


def saved_by_loops(remat, letters):
    """Of the loops over layers of a training step's loss: shapes that they stack for the backward
    pass on the device, and on the host.
    """
    spec = decoder(letters)
    model = build(spec, make_mesh(), remat=remat)
    batch = random_batch(spec, rows=B, length=L)
    loss = make_loss(model, objectives.make_objective("sft"), 64)
    gradient = jax.grad(lambda params: loss(params, batch, 1.0)[0])
    program = jaxprs.needed(jax.make_jaxpr(gradient)(model.abstract_params))
    on_device, on_host = [], []
    for loop in jaxprs.equations(program, "scan"):
        for value in loop.outvars:
            shape, space = value.aval.shape, value.aval.memory_space
            if shape[1:] == (B, L, D):
                (on_host if space == HOST else on_device).append(shape)
            else:
                assert space != HOST
    return on_device, on_host


@pytest.mark.parametrize(
    "letters, stacked",
    [("rrr", [(3, B, L, D)]), ("rn" * 3 + "dd", [(3, B, L, D)] * 2 + [(2, B, L, D)])],
)
def test_every_layers_input_lies_on_the_host_and_nothing_else_does(letters, stacked):
    assert saved_by_loops("full", letters) == (stacked, [])
    assert saved_by_loops("offload", letters) == ([], stacked)


def device_with(*kinds):
    memories = [types.SimpleNamespace(kind=kind) for kind in kinds]
    return types.SimpleNamespace(device_kind="abacus", addressable_memories=lambda: memories)


def test_a_device_without_such_memory_is_refused_by_name():
    require("full", [device_with("device")])
    require("offload", [device_with("device", "pinned_host")])
    require("offload", jax.devices())  # a CPU's is its own
    with pytest.raises(errors.UserError) as refused:
        require("offload", [device_with("device", "unpinned_host")])
    said = str(refused.value)
    for word in (
        "config.model.remat='offload'",
        "'pinned_host'",
        "'abacus'",
        "device, unpinned_host",
        "use full",
    ):
        assert word in said


def test_a_run_asks_before_it_compiles(monkeypatch):
    monkeypatch.setattr(rematerialisation, "_HOST_MEMORY", "abacus")
    with pytest.raises(errors.UserError, match="'offload' needs memory of kind 'abacus'"):
        open_model(tiny_config(**{"model.remat": "offload"}))


MESHES = [("mixtral", (1, 2, 1, 1, 2)), ("qwen3_moe", (1, 1, 1, 2, 2))]


@pytest.mark.parametrize("family, sizes", slow_but([], MESHES, slow=MESHES[:1]))
def test_experts_give_the_gradients_of_full_bit_for_bit(family, sizes):
    spec, mesh = read_config(GOLDEN / family), make_mesh(*sizes)
    batch = random_batch(spec, rows=4, length=16)
    found = []
    for remat in ("full", "offload"):
        model = build(spec, mesh, remat=remat)
        params = model.init(jax.random.key(0))
        loss = make_loss(model, objectives.make_objective("dft"), 8, balance_weight=0.5)
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        found.append(jax.tree.leaves(step(params, batch, 7.0, None, 50)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
