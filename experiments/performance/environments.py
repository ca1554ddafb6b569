"""The environments of the peers: built once with venv and pip in a folder, at the versions that
were measured.
"""

import subprocess
import sys
import venv
from pathlib import Path

# torch: where pip's own index has only the CUDA build, it works as well; PIP_EXTRA_INDEX_URL can
# name the CPU one.
PACKAGES = {
    "torch": [
        "torch==2.13.0",
        "transformers==5.23.0",
        "trl==1.16.0",
        "accelerate==1.15.0",
        "numpy==2.4.6",
        "peft==0.21.2",
    ],
    "tunix": [
        "google-tunix==0.1.7",
        "jax==0.10.2",
        "jaxlib==0.10.2",
        "flax==0.12.8",
        "optax==0.2.8",
    ],
}


def python_of(name: str, folder: Path, given: str | None) -> str:
    """The interpreter of an environment: the one `given`, or that of a venv in `folder`, built when
    it is not there.
    """
    if given:
        return given
    place = folder / name
    python, is_complete = place / "bin/python", place / "complete"
    if not is_complete.exists():
        print(f"building {place}: {' '.join(PACKAGES[name])}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
        is_complete.write_text("\n".join(PACKAGES[name]) + "\n")
    return str(python)


def pythons(folder: Path, torch: str | None, tunix: str | None, needed: set[str]) -> dict[str, str]:
    """Interpreters by name; one that cannot be built is left out, and its rows are not measured."""
    found = {"ours": sys.executable}
    for name, given in (("torch", torch), ("tunix", tunix)):
        if name not in needed:
            continue
        try:
            found[name] = python_of(name, folder, given)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{name}: no environment ({error})", flush=True)
    return found
