"""Programs by the shape of a batch: each compiled once, those of cuDNN by segments too."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from dft_jax import sharding
from dft_jax.training.programs import ProgramsByRows
from dft_jax.types import MORE_SEGMENTS


@pytest.mark.parametrize("backend, n_programs", [("cudnn", 2), ("blocked", 1)])
def test_rows_of_more_segments_have_a_program_of_their_own_and_it_is_said_once(
    backend, n_programs, mesh1, capfd
):
    packer = types.SimpleNamespace(
        accumulation=1, row_length=16, row_counts=[2], most_segments=8, mesh=mesh1
    )
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
