"""dft_jax: Dynamic Fine-Tuning (DFT) against Supervised Fine-Tuning (SFT), in JAX and Flax."""

__version__ = "0.1.0"
