"""Fills a folder with the wheels that a GPU machine without a network lacks, and prints the
commands that use them there.

python -m experiments.performance.carry FOLDER

That machine has Python 3.12, jax with CUDA 13, torch, transformers, flax, optax and orbax; what
dft_jax needs beside those is under 7 MB. `--essential` leaves out what training and the rows do
without.
"""

import subprocess
import sys
from pathlib import Path

from experiments import common

# As they were when the script was tried; a machine with other versions of their neighbours may want
# others.
ESSENTIAL = (
    "array_record==0.8.6",
    "grain==0.2.18",
    "ml_collections==1.1.0",
    "portpicker==1.6.0",
)
OTHERS = (
    "antlr4-python3-runtime==4.13.2",
    "datasets==5.2.0",
    "dill==0.4.1",
    "latex2sympy2_extended==1.11.0",
    "math-verify==0.9.0",
    "multiprocess==0.70.19",
    "tensorboardX==2.6.5",
    "trl==1.16.0",
)
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def download(folder: Path, packages: tuple[str, ...]) -> None:
    """The wheels for Python 3.12 on Linux, each by itself: what they need is there."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    command += [f"--platform={platform}" for platform in _PLATFORMS]
    subprocess.run([*command, *packages], check=True)


def commands(folder: Path) -> str:
    """What to run there, from the root of the repository: install, then one call of the script."""
    return "\n".join(
        [
            "python3 -m pip install -q --no-index --no-deps --no-compile --target=/tmp/site"
            f" {folder}/*.whl",
            "export PYTHONPATH=/tmp/site",
            'python3 -m experiments.performance.gpu --out="$OUT" --limit=90 --budget=500',
        ]
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--essential", action="store_true", help="training and the rows only")
    arguments = parser.parse_args()
    packages = ESSENTIAL if arguments.essential else ESSENTIAL + OTHERS
    download(arguments.folder, packages)
    size = sum(file.stat().st_size for file in arguments.folder.glob("*.whl")) / 1e6
    print(f"{arguments.folder}: {size:.1f} MB of wheels", file=sys.stderr)
    print(commands(arguments.folder))


if __name__ == "__main__":
    main()
