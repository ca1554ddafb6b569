"""README's Python and the notebooks: both run as they stand."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from examples import make
from tests import xla
from tests.marks import slow_but

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# What a reader has who has installed the package: its public face, and plotting.
ALLOWED = {"dft_jax", "dft_jax.assets", "matplotlib.pyplot", "numpy", "pathlib.Path"}


def run_python(file: pathlib.Path, folder: pathlib.Path) -> str:
    """Runs a script in `folder` on one CPU device; returns what it prints."""
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla.flags(1),
    }
    done = subprocess.run(
        [sys.executable, str(file)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_readmes_python_runs(tmp_path):
    """As it stands, in a folder that has what a checkout's root has, but the folders it writes."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    assert len(blocks) == 1
    for name in ("dft_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = tmp_path / "readme.py"
    script.write_text(blocks[0], encoding="utf-8")
    printed = run_python(script, tmp_path)
    assert "lab        T=1     dft" in printed and "1 difference" not in printed
    assert (tmp_path / "exports/lab-dft/model.safetensors").exists()


@pytest.mark.parametrize("name", slow_but([], make.NAMES, slow=make.NAMES[:1]))
def test_example_runs(name, tmp_path):
    assert run_python(EXAMPLES / f"{name}.py", tmp_path)


@pytest.mark.parametrize("name", make.NAMES)
def test_examples_use_the_public_api_alone(name):
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert found <= ALLOWED


@pytest.mark.parametrize("name", make.NAMES)
def test_notebooks_are_made_of_the_scripts(name):
    """The same cells, executed without an error, small, and without a machine's paths."""
    file = EXAMPLES / f"{name}.ipynb"
    text = file.read_text(encoding="utf-8")
    stored = []
    pictures = 0
    for cell in json.loads(text)["cells"]:
        source = cell["source"]
        stored.append((cell["cell_type"], source if isinstance(source, str) else "".join(source)))
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            pictures += "image/png" in output.get("data", {})
    script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert stored == make.cells(script), f"python examples/make.py {name}"
    assert pictures and len(text.encode()) <= make.LARGEST_BYTES
    assert not re.search(r"/(root|home|tmp|Users)/", text)
