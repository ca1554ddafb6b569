"""Programs by the shape of a batch: each compiled once, those of cuDNN by segments too; and how many
rows a compilation is worth.
"""

import dataclasses
import types

import jax
import numpy as np
import pytest

from dft_jax import sharding
from dft_jax.data.batches import Packer
from dft_jax.training.programs import ProgramsByRows, compilation_rows, training_rate
from dft_jax.types import MORE_SEGMENTS
from tests.tiny_trainer import Trainer


@pytest.mark.parametrize("backend, n_programs", [("cudnn", 2), ("blocked", 1)])
def test_rows_of_more_segments_have_a_program_of_their_own_and_it_is_said_once(
    backend, n_programs, mesh1, capfd
):
    packer = Packer.__new__(Packer)
    packer.accumulation, packer.row_length, packer.mesh = 1, 16, mesh1
    packer.row_counts, packer.most_segments, packer.with_weights = [2], 8, False
    packer.has_images, packer.vision, packer.features_dtype = False, None, ""
    traced = []

    def function(given, batch):
        traced.append(batch.most_segments)
        return given + batch.segments_BL.sum()

    given = jax.ShapeDtypeStruct((), np.int32)
    programs = ProgramsByRows(jax.jit(function), (given,), packer, backend)
    programs.compile_all()
    foreseen = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype), sharding.abstract_batch((1, 2, 16), mesh1, 8)
    )
    beyond = dataclasses.replace(foreseen, most_segments=MORE_SEGMENTS)
    for batch in (foreseen, beyond, foreseen, beyond):
        assert programs.run((np.int32(1),), batch) == 33
    assert traced == [8, MORE_SEGMENTS][:n_programs]
    said = capfd.readouterr().err
    assert said.count("attention: blocked in batches with a row of more than 8 segments") == (
        n_programs - 1
    )


def test_a_compilation_is_worth_the_rows_that_are_computed_in_ten_seconds(mesh1):
    model, length = Trainer(mesh1).model, 160
    c = model.config
    n_params = sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params))
    multiplied = n_params if c.tie_embeddings else n_params - c.vocab_size * c.hidden_size
    # causal: half of the positions on average
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * length / 2
    row_s = length * (6 * multiplied + attention) / 1.5e11
    assert compilation_rows(model, length) == pytest.approx(10 / row_s)


def test_the_rate_is_that_of_hosts_or_of_accelerators():
    def devices(count, platform="cpu", kind="cpu", hosts=1):
        return [
            types.SimpleNamespace(platform=platform, device_kind=kind, process_index=n % hosts)
            for n in range(count)
        ]

    assert training_rate(devices(1)) == training_rate(devices(8)) == 1.5e11
    assert training_rate(devices(8, hosts=2)) == 3e11
    hopper = devices(4, "gpu", "NVIDIA H100 80GB HBM3")
    assert training_rate(hopper) == pytest.approx(4 * 0.4 * 989e12)
