"""What the backward pass of the layers finds saved, and where: the policies of config.model.remat.

| policy | saved of each layer | in the memory of |
| --- | --- | --- |
| `none` | everything | the device |
| `dots` | its input, results of matrix products and of attention's kernels | the device |
| `full` | its input | the device |
| `offload` | its input | the device's host |

A loop over layers stacks what is saved. Under `offload` XLA keeps the stack on the host, and copies
a layer's input there after the layer has run, and back before its backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from dft_jax.models import layers, moe
from dft_jax.models.attention.kernels import is_result
from dft_jax.runtime import errors

OFFLOAD = "offload"
# What a layer is given, by its name in policies.
LAYER_INPUT = "layer_input"
# The memory of a device's host that it can copy to and from by itself, as JAX calls it.
_HOST_MEMORY = "pinned_host"

_either = jax.checkpoint_policies.save_from_both_policies
_is_product_of_experts = jax.checkpoint_policies.save_only_these_names(moe.PRODUCT)
# In the order of what they cost in time, the least first.
REMAT_POLICIES = {
    "none": None,
    "dots": _either(
        _either(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, is_result),
        _is_product_of_experts,
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    OFFLOAD: jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=(LAYER_INPUT,),
        offload_src="device",
        offload_dst=_HOST_MEMORY,
    ),
}
# `dots` of a model with adapters: each product with a kernel, and A x, but not B (A x), which is
# made again from it. That would be saved a second time for each matrix: of 7B on a GPU `dots` took
# 10.8 GiB a row, more than `none`. They are told by name, since a kernel may have B's shape.
_DOTS_BESIDE_ADAPTERS = _either(
    jax.checkpoint_policies.save_only_these_names(layers.KEPT, moe.PRODUCT), is_result
)


def policy_of(remat: str, is_adapted: bool) -> Callable[..., Any] | None:
    """The policy of this name, for a model with adapters or without; None where all is saved."""
    if is_adapted and remat == "dots":
        return _DOTS_BESIDE_ADAPTERS
    return REMAT_POLICIES[remat]


def require(remat: str, devices: Sequence[Any]) -> None:
    """UserError where one cannot keep what a policy saves, before anything is compiled.

    A CPU is no exception: it names this memory, which is its own, so `offload` is `full` there.
    """
    for device in devices:
        kinds = [memory.kind for memory in device.addressable_memories()]
        if remat == OFFLOAD and _HOST_MEMORY not in kinds:
            raise errors.UserError(
                f"config.model.remat={remat!r} needs memory of kind {_HOST_MEMORY!r} beside a"
                f" device (here: {device.device_kind!r} with {', '.join(kinds)}); use full"
            )
