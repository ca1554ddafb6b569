"""The shape of the codebase: imports point down, files and functions stay short, nothing heavy in
the core.
"""

import ast
import functools
import pathlib
import re
import sys

import pytest

from tests import density

ROOT = pathlib.Path(__file__).parents[1]
CORE = sorted((ROOT / "dft_jax").rglob("*.py"))

# A module may import from its own rank and from lower ones; the longest name that is there counts.
RANKS = {
    "dft_jax": 0,
    "dft_jax.assets": 0,
    "dft_jax.runtime": 0,
    "dft_jax.types": 1,
    "dft_jax.sharding": 1,
    "dft_jax.losses": 2,
    "dft_jax.models": 2,
    "dft_jax.data": 2,
    "dft_jax.checkpoints": 2,
    "dft_jax.sampling": 3,
    "dft_jax.lm": 3,
    "dft_jax.training": 4,
    "dft_jax.evals": 4,
    "dft_jax.config": 5,
    "dft_jax.analysis": 6,
    "dft_jax.planner": 6,
    "dft_jax.lab": 6,
    "dft_jax.api": 7,
    "dft_jax.commands": 8,
    "dft_jax.study": 8,
    # Thin commands: flags, and a call of what is below.
    "dft_jax.main": 8,
    "dft_jax.evaluate": 8,
    "dft_jax.export": 8,
    "dft_jax.generate": 8,
    "dft_jax.plan": 8,
    "dft_jax.analysis.compare": 8,
    "dft_jax.analysis.inspect_data": 8,
    "dft_jax.analysis.quickstart": 8,
    "dft_jax.analysis.tokens": 8,
}


def rank(name: str) -> int:
    """Of a module, or of a name in one."""
    parts = name.split(".")
    while parts != ["dft_jax"]:
        if ".".join(parts) in RANKS:
            return RANKS[".".join(parts)]
        parts.pop()
    assert name in ("dft_jax", "dft_jax.__version__"), f"{name}: give it a rank here"
    return RANKS["dft_jax"]


def module_of(file: pathlib.Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def parsed(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def imports(file: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{source_of(file, node)}.{alias.name}" for alias in node.names}
    return found


def source_of(file: pathlib.Path, node: ast.ImportFrom) -> str:
    """The module that names are imported from; of `from . import x` the package."""
    if not node.level:
        return node.module
    package = module_of(file).split(".")[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_imports_point_down(file):
    module = module_of(file)
    for name in imports(file):
        assert not name.startswith(("configs", "experiments", "tests")), f"{module} imports {name}"
        if module == "dft_jax" and name.startswith("dft_jax.api."):
            continue  # for type checkers alone: they are read on first use (tests/test_api.py)
        if name.startswith("dft_jax."):
            assert rank(name) <= rank(module), (
                f"{module} (rank {rank(module)}) imports {name} (rank {rank(name)})"
            )


def test_training_and_evaluation_do_not_know_each_other():
    """Whoever calls the loop hands evaluators to it."""
    for file in CORE:
        module = module_of(file)
        for name in imports(file):
            both = f"{module} {name}."
            assert not re.match(r"dft_jax\.training\S* dft_jax\.evals\.", both), both
            assert not re.match(r"dft_jax\.evals\S* dft_jax\.training\.", both), both


def test_flags_are_in_commands_only():
    found = {module_of(file) for file in CORE if any("absl" in name for name in imports(file))}
    assert {module for module in found if rank(module) < 8} == set()


def test_few_files_lie_at_the_top():
    assert len(list((ROOT / "dft_jax").glob("*.py"))) <= 10


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_a_file_knows_few_others(file):
    """Modules of ours that a file imports from."""
    known = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.ImportFrom) and source_of(file, node).startswith("dft_jax"):
            source = source_of(file, node)
            for alias in node.names:
                place = ROOT / f"{source}.{alias.name}".replace(".", "/")
                is_module = place.with_suffix(".py").exists() or place.is_dir()
                known.add(f"{source}.{alias.name}" if is_module else source)
    assert len(known) <= 12, sorted(known)


# Where a module that JAX says is private may be named, and what happens where it is gone.
PRIVATE_JAX = {
    "dft_jax/models/attention/kernels.py": "the backend `cudnn` is not chosen, or refused where asked for by name",
    "dft_jax/runtime/cluster.py": "--distributed=auto finds nothing, and says so",
    "dft_jax/runtime/distributed.py": "devices carry what the coordination service would",
    "experiments/performance/aot.py": "nothing is compiled for a GPU that is not there",
    "tests/private_jax.py": "nothing is cached; cuDNN's tests are skipped",
    "tests/test_structure.py": "this list",
}


def test_private_jax_is_used_with_a_fallback_only():
    found = set()
    for folder in ("dft_jax", "configs", "experiments", "scripts", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            if "jax._src" in file.read_text(encoding="utf-8"):
                found.add(str(file.relative_to(ROOT)))
    assert found == PRIVATE_JAX.keys()


# What these say is about all devices of the process. A model is on a mesh, which may have others.
OF_ALL_DEVICES = {
    "dft_jax/runtime/compilation_cache.py": "whether programs may be kept, before there is a mesh",
    "dft_jax/sharding.py": "the devices of which a mesh is made",
    "dft_jax/runtime/interrupts.py": "one answer of each device, in a mesh of its own",
    "dft_jax/runtime/environment.py": "what the machine and each process has, before any mesh",
}


def test_what_is_asked_of_a_mesh_is_not_asked_of_the_default_backend():
    """What shapes a program asks `sharding.platform`, or the mesh's devices: a step may be compiled
    on a machine with CPUs for a TPU. So nothing else names JAX's own devices, however imported.
    """
    names = {"default_backend", "devices", "local_devices", "get_backend", "platform_dependent"}
    found = set()
    for file in CORE:
        for node in ast.walk(parsed(file)):
            used = set()
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith("jax"):
                used = {node.attr}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax"):
                used = {alias.name for alias in node.names}
            if names & used:
                found.add(str(file.relative_to(ROOT)))
    assert found == OF_ALL_DEVICES.keys()


def test_what_systems_do_each_in_their_own_way_is_in_one_module():
    """There it is tested with what macOS lacks (tests/macos). The jail is Linux's own, refuses every
    other system, and runs where runtime/system.py cannot be imported.
    """
    words = re.compile(
        r"\b(fcntl|resource|prctl|sched_\w+affinity|RLIMIT_\w+)\b|/proc/|sys\.platform"
    )
    found = set()
    for file in CORE:
        code = ast.unparse(parsed(file))
        if words.search(code) and module_of(file) != "dft_jax.runtime.system":
            found.add(module_of(file))
    assert {name for name in found if not name.startswith("dft_jax.evals.jail.")} == set()


def test_the_jail_needs_the_standard_library_only():
    """It runs in a bare interpreter, under its own name: nothing of ours but its own files."""
    for file in (ROOT / "dft_jax/evals/jail").glob("*.py"):
        for name in imports(file):
            is_its_own = name.startswith(("dft_jax.evals.jail.", "jail."))
            assert is_its_own or name.split(".")[0] in sys.stdlib_module_names, f"{file}: {name}"


def test_processes_meet_on_devices_in_programs_only():
    """Else through the coordination service: where one is 30 s late, a first meeting of devices
    fails.
    """
    users = [
        module_of(file) for file in CORE if any("multihost_utils" in name for name in imports(file))
    ]
    assert users == ["dft_jax.runtime.distributed"]  # for where there is no service


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_no_torch_and_no_flax_outside_models(file):
    heads = {name.split(".")[0] for name in imports(file)}
    assert not heads & {"torch", "tensorflow", "trl"}
    if "flax" in heads:
        assert "models" in file.parts


def test_files_and_functions_are_short():
    for file in CORE:
        text = file.read_text()
        lines = text.count("\n")
        assert lines <= 500, f"{file}: {lines} lines"
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 70, f"{file}:{node.lineno} {node.name}: {length} lines"


def test_the_package_is_plain():
    """Per 1,000 lines (tests/density.py): symptoms of lines that a reader has to read twice."""
    found = density.per_thousand(density.total(ROOT / "dft_jax"))
    assert found["comprehensions"] <= 18
    assert found["conditional expressions"] <= 8
    assert found["own-line comments"] >= 30
    assert found["lines over 100 columns"] == 0


def test_the_loop_fits_on_a_screen():
    """Without a function in a function: a reader goes from top to bottom, once."""
    tree = parsed(ROOT / "dft_jax/training/loop.py")
    (run,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    body = run.body[1:]  # after the docstring
    assert body[-1].end_lineno - body[0].lineno + 1 <= 40
    assert not [n for n in ast.walk(run) if isinstance(n, ast.FunctionDef) and n is not run]
    assert "config" not in ast.unparse(run)


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_public_functions_say_what_they_do(file):
    tree = parsed(file)
    assert file.name == "__init__.py" and not file.read_text().strip() or ast.get_docstring(tree), (
        file
    )
    for node in tree.body:
        is_public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith(
            "_"
        )
        if is_public and node.end_lineno - node.lineno > 8:
            assert ast.get_docstring(node) or node.name == "main", (
                f"{file}:{node.lineno} {node.name}"
            )


def public_functions(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    """Functions of a module and methods of its public classes, constructors included."""
    found = []
    for node in body:
        is_public = not getattr(node, "name", "_").startswith("_")
        if isinstance(node, ast.ClassDef) and is_public:
            found += public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and (is_public or node.name == "__init__"):
            found.append(node)
    return found


@pytest.mark.parametrize("file", CORE, ids=module_of)
def test_public_functions_are_annotated(file):
    """Every argument and result, so that `pytest --jaxtyping-packages=…` has what to check.

    A name that ends in shape letters, as `tokens_BL`, has the shape in its annotation.
    """
    for node in public_functions(parsed(file).body):
        where = f"{file}:{node.lineno} {node.name}"
        every = node.args
        arguments = [*every.posonlyargs, *every.args, *every.kwonlyargs]
        arguments += filter(None, [every.vararg, every.kwarg])
        for argument in arguments:
            annotation = argument.annotation
            assert annotation or argument.arg in ("self", "cls"), f"{where}: {argument.arg}"
            if re.search(r"_[A-Z]+$", argument.arg):
                bare = {"Any", "AnyArray", "Array", "jax.Array", "np.ndarray"}
                assert ast.unparse(annotation) not in bare, f"{where}: {argument.arg}"
        assert node.returns or node.name == "__init__", f"{where}: its result"


def test_configs_name_their_command():
    for file in sorted((ROOT / "configs").glob("*.py")):
        text = ast.get_docstring(parsed(file))
        assert f"python -m dft_jax.main --config=configs/{file.name}" in text and "xpect" in text, (
            file
        )


def test_every_package_ships():
    """find_packages sees every folder of modules, so that a wheel has them."""
    for folder in {file.parent for file in CORE}:
        assert (folder / "__init__.py").exists(), folder


# Packages whose name is not that of what they hold, and what comes with another.
PACKAGE_OF = {"absl": "absl-py", "orbax": "orbax-checkpoint", "math_verify": "math-verify"}
# None: optional
PACKAGE_OF["PIL"] = "pillow"
PACKAGE_OF |= {"latex2sympy2_extended": "math-verify", "mpmath": "sympy", "wandb": None}
PACKAGE_OF["jail"] = None  # evals/jail under the name that it has where it runs


def test_what_is_imported_is_required():
    setup = (ROOT / "setup.py").read_text()
    required = setup[setup.index("install_requires=") : setup.index("extras_require=")]
    for file in CORE:
        for name in imports(file):
            head = name.split(".")[0]
            package = PACKAGE_OF.get(head, head)
            if head not in sys.stdlib_module_names | {"dft_jax"} and package:
                assert re.search(rf'"{package}[>=]=', required), f"{file} imports {head}"


def test_the_oldest_versions_are_the_lower_bounds():
    """What setup.py promises is what the tests were run with; a longer version pads with zeros or
    names a patch.
    """
    setup = (ROOT / "setup.py").read_text()
    bounds = dict(re.findall(r'"([\w-]+)(?:[>=]=)([\d.]+)', setup))
    lines = (ROOT / "constraints/oldest.txt").read_text().splitlines()
    exact = dict(line.split("==") for line in lines if not line.startswith("#"))
    required = setup[setup.index("install_requires=") : setup.index('"tpu":')]
    unbounded = re.findall(r'"([\w-]+)(?:\[.*?\])?"[,\]]', required)
    assert unbounded == [], "give it a lower bound"
    assert exact.keys() == {name for name in bounds if f'"{name}' in required}
    for name, version in exact.items():
        assert (version + ".").startswith(bounds[name] + "."), (
            f"{name}: {version} is not {bounds[name]}"
        )
