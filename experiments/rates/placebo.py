"""DFT with its weights permuted among the trained tokens of the batch: what it gains over SFT is
not due to *which* tokens are weighted. Of this study alone, not of the package.
"""

import jax
import jax.numpy as jnp

from dft_jax.losses import objectives
from dft_jax.types import TokenStats


def permuted_dft(stats: TokenStats):
    """Weight p of another trained token of the batch, drawn without replacement.

    The order is drawn anew for each batch: its key is made of the bits of the batch's own loss.
    """
    is_trained_N = stats.examples_BL.reshape(-1) > 0
    logp_N = jax.lax.stop_gradient(stats.logp_BL).reshape(-1)
    bits = jax.lax.bitcast_convert_type(logp_N.sum(), jnp.uint32)
    key = jax.random.fold_in(jax.random.key(0), bits)
    # Trained tokens come first in both orders, once as they stand and once shuffled.
    drawn_N = jnp.where(is_trained_N, jax.random.uniform(key, logp_N.shape), 2.0)
    from_N, to_N = jnp.argsort(drawn_N), jnp.argsort(~is_trained_N, stable=True)
    weights_N = jnp.zeros_like(logp_N).at[to_N].set(jnp.exp(logp_N)[from_N])
    # Places behind the trained tokens exchange weights of untrained ones, which count for nothing.
    return weights_N.reshape(stats.logp_BL.shape)


def register() -> None:
    """Lets a config name it, in this process."""
    if permuted_dft.__name__ not in objectives.OBJECTIVES:
        objectives.objective(needs=(objectives.OTHER_TOKENS,))(permuted_dft)
