"""dft_jax: Dynamic Fine-Tuning (DFT) against Supervised Fine-Tuning (SFT), in JAX and Flax."""

import time

from dft_jax.runtime import system  # noqa: F401 — on Windows it ends here

__version__ = "0.1.0"

IMPORTED_AT = time.monotonic()  # what a command's start-up is measured from
