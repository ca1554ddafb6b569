"""Rematerialisation with layers' inputs on the host: the same program as `full` but for where they
lie, and the same numbers bit for bit.
"""

import jax
import numpy as np
import pytest

from tests.conftest import make_mesh
from tests.marks import slow_but
from tests.tiny_trainer import Trainer

WAYS = {
    "one": ((1, 1, 1), {}),
    "fsdp": ((1, 8, 1), {}),
    "accumulation": ((2, 2, 2), {"train.accumulation": 2}),
    "sequence": ((1, 2, 1, 4), {}),
    "adapters": ((1, 4, 2), {"lora.rank": 4, "train.accumulation": 2}),
    "bfloat16": ((1, 4, 1), {"model.compute_dtype": "bfloat16"}),
}


def trained(mesh, remat, **overrides):
    """The state after two updates of packed rows, and the sums of each."""
    trainer = Trainer(mesh, **{"model.remat": remat, "objective": "dft"}, **overrides)
    sums = [trainer.take(number) for number in range(2)]
    return jax.tree.leaves((trainer.state, sums))


# Five seconds each and more.
@pytest.mark.parametrize("way", slow_but([], WAYS, slow=["accumulation", "sequence", "bfloat16"]))
def test_training_is_that_of_full_bit_for_bit(way):
    shape, overrides = WAYS[way]
    expected = trained(make_mesh(*shape), "full", **overrides)
    found = trained(make_mesh(*shape), "offload", **overrides)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
