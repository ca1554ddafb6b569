"""The shape of the codebase: imports point down, files and functions stay short, nothing heavy in the core."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CORE = sorted((ROOT / "dft_jax").rglob("*.py"))

# A module may import from its own rank and from lower ones; the first match names it.
RANKS = [
    ("errors", 0),
    ("types", 0),
    ("__init__", 0),
    ("assets", 0),
    ("workers", 1),
    ("sharding", 1),
    ("interrupts", 1),
    ("distributed", 1),
    ("objectives", 2),
    ("losses", 2),
    ("metrics", 2),
    ("optimizer", 2),
    ("writer", 2),
    ("manifest", 3),
    ("models", 3),
    ("data", 3),
    ("checkpoint", 3),
    ("drawing", 4),
    ("rounding", 4),
    ("sampling", 4),
    ("progress", 4),
    ("evals", 5),
    ("config", 5),
    ("run_directory", 5),
    ("cli", 6),
    ("train", 6),
    ("evaluate", 7),
    ("export", 7),
    ("analysis", 8),
    ("plan", 8),
    ("study", 8),
    ("main", 8),
]


def rank(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    ranks = dict(RANKS)
    assert part in ranks, f"{module}: give it a rank here"
    return ranks[part]


def module_of(file: pathlib.Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_imports_point_down(file):
    module = module_of(file)
    for name in imports(file):
        assert not name.startswith(("configs", "experiments", "tests")), f"{module} imports {name}"
        if name.startswith("dft_jax."):
            assert rank(name) <= rank(module), f"{module} (rank {rank(module)}) imports {name} (rank {rank(name)})"


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_no_torch_and_no_flax_outside_models(file):
    heads = {name.split(".")[0] for name in imports(file)}
    assert not heads & {"torch", "tensorflow", "trl"}
    if "flax" in heads:
        assert file.parent.name == "models"


def test_files_and_functions_are_short():
    for file in CORE:
        text = file.read_text()
        lines = text.count("\n")
        assert lines <= 500, f"{file}: {lines} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 70, f"{file}:{node.lineno} {node.name}: {length} lines"


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_public_functions_say_what_they_do(file):
    tree = ast.parse(file.read_text())
    assert file.name == "__init__.py" and not file.read_text().strip() or ast.get_docstring(tree), file
    for node in tree.body:
        is_public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if is_public and node.end_lineno - node.lineno > 8:
            assert ast.get_docstring(node) or node.name == "main", f"{file}:{node.lineno} {node.name}"


def test_configs_name_their_command():
    for file in sorted((ROOT / "configs").glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text()))
        assert f"python -m dft_jax.main --config=configs/{file.name}" in text and "xpect" in text, file


def test_every_package_ships():
    """find_packages sees every folder of modules, so that a wheel has them."""
    for folder in {file.parent for file in CORE}:
        assert (folder / "__init__.py").exists(), folder
