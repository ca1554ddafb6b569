"""README.md, CONTRIBUTING.md, docs/ and studies: commands, links and names are the code's."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dft_jax import config as config_lib
from dft_jax.models import families
from experiments import __main__ as studies

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted((ROOT / "experiments").rglob("README.md"))
PAGES = [*GUIDES, *STUDIES, *sorted((ROOT / "examples").glob("*.md"))]

# Parses each command line as `python -m MODULE` does, and prints what it refuses. Nothing is run.
PARSE = """
import importlib, json, sys
from absl import flags

# Its own flags, where it has such.
known = getattr(importlib.import_module(sys.argv[1]), "FLAGS", flags.FLAGS)
problems = []
for arguments in json.load(sys.stdin):
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    known.unparse_flags()
    for name in known:
        known[name].unparse()
    sys.argv = ["command", *arguments]
    try:
        known(sys.argv)
    except Exception as error:
        problems.append(f"{arguments}: {error}")
print(json.dumps(problems))
"""


def relative(file: pathlib.Path) -> str:
    return str(file.relative_to(ROOT))


def text_of(file: pathlib.Path) -> str:
    return file.read_text(encoding="utf-8")


def code_lines(file: pathlib.Path) -> list[str]:
    """The lines of a page's shell blocks, continued ones joined, and the commands in its text."""
    lines = []
    for block in re.findall(r"^```bash\n(.*?)^```", text_of(file), flags=re.M | re.S):
        lines += block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", text_of(file), flags=re.M | re.S)
    for span in re.findall(r"`([^`]*)`", prose):
        if "python -m" in span:
            lines.append(span.replace("\n", " "))
    return lines


def commands(file: pathlib.Path) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every `python -m` in a page."""
    found = []
    for line in code_lines(file):
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            if "-m" not in words:
                continue
            module, *arguments = words[words.index("-m") + 1 :]
            given = [word.replace("$objective", "dft") for word in arguments]
            found.append((module, given))
    return found


def test_every_command_is_understood():
    """Flags, values of flags, config files and keys: as absl and the default config have them."""
    by_module: dict[str, list[list[str]]] = {}
    for page in GUIDES:
        for module, arguments in commands(page):
            if module.startswith("dft_jax.") and "…" not in " ".join(arguments):
                by_module.setdefault(module, []).append(arguments)
    assert len(by_module) >= 7 and sum(map(len, by_module.values())) >= 15

    def problems(module: str) -> list[str]:
        name = f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
        command = [sys.executable, "-c", PARSE, name]
        lines = json.dumps(by_module[module])
        done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        return [f"{module}: {problem}" for problem in json.loads(done.stdout)]

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(problems, sorted(by_module)), []) == []


def module_file(module: str) -> pathlib.Path:
    file = ROOT / module.replace(".", "/")
    return file / "__main__.py" if file.is_dir() else file.with_suffix(".py")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_module_and_script_is_there(page):
    for module, _ in commands(page):
        if module.startswith(("dft_jax", "experiments", "tests")):
            assert module_file(module).exists(), f"python -m {module}"
    for line in code_lines(page):
        for script in re.findall(r"python3? ((?:experiments|tests|examples|docs)/\S+\.py)", line):
            assert (ROOT / script).exists(), script


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_launchers_have_the_options_that_pages_give_them(page):
    for line in code_lines(page):
        called = re.match(r"\s*(scripts/\w+\.sh)(.*)", line)
        if not called:
            continue
        script = text_of(ROOT / called[1])
        for word in shlex.split(called[2].split(" -- ")[0]):
            if word.startswith("--"):
                assert f"[{word[2:].split('=')[0]}]=" in script, f"{called[1]} {word}"


def heading_anchors(file: pathlib.Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text_of(file), flags=re.M | re.S)
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", prose, flags=re.M):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        anchors.add(words.replace(" ", "-"))
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_local_link_leads_somewhere(page):
    prose = re.sub(r"`[^`\n]*`", "", text_of(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in heading_anchors(file), target


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_config_keys_are_known(page):
    """`section.key` in backquotes is a key of the default config, where the section is one."""
    known = config_lib.flatten(config_lib.get_default())
    sections = {key.partition(".")[0] for key in known if "." in key}
    for span in re.findall(r"`([^`\n]*)`", text_of(page)):
        key = span.removeprefix("--").removeprefix("config.").partition("=")[0]
        is_key = re.fullmatch(r"[a-z]+\.[a-z_]+", key) and not key.endswith((".py", ".json", ".sh"))
        if is_key and key.partition(".")[0] in sections:
            assert key in known, span


def test_readme_is_short_and_has_both_commands():
    text = text_of(ROOT / "README.md")
    assert len(text.splitlines()) <= 110
    start = "python3 -m venv .venv && .venv/bin/pip install -q -e"
    quickstart = (
        f"{start} . && .venv/bin/python -m dft_jax.analysis.quickstart --out=runs/quickstart"
    )
    pytest_line = f"{start} '.[test]' && .venv/bin/python -m pytest -n 2 --dist loadfile"
    assert f"<!-- main command -->\n```bash\n{quickstart}\n```" in text
    assert f"<!-- test command -->\n```bash\n{pytest_line}\n```" in text


def test_readme_repeats_the_study():
    """Each number of its table of results is in the study's own table."""
    rows = re.findall(r"^\| .* \| [\d.]+ \| .*$", text_of(ROOT / "README.md"), flags=re.M)
    study = text_of(ROOT / "experiments/lab/main_comparison/table.md").splitlines()
    assert len(rows) == 5
    for row in rows:
        _, base, sft, dft, difference, greedy = [cell.strip() for cell in row.strip("|").split("|")]
        matches = []
        for line in study:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            start = [cells[3], cells[4].split(" ")[0], cells[5].split(" ")[0], cells[6], cells[-1]]
            if start == [base, sft, dft, difference, greedy]:
                matches.append(line)
        assert len(matches) == 1, row


def test_the_tree_is_the_tree():
    """Every file and folder that docs/extending.md shows is there, and every folder of the package
    is shown.
    """
    block = re.search(
        r"^## The tree\n\n```\n(.*?)^```", text_of(ROOT / "docs/extending.md"), re.M | re.S
    )
    parents: list[str] = []
    shown = set()
    for line in block[1].splitlines():
        entry = re.match(r"^( *)([\w.]+/?)(?= |$)", line)
        if not entry or len(entry[1]) > 4:  # a description that goes on
            continue
        depth = len(entry[1]) // 2
        parents[depth:] = [entry[2]]
        path = "".join(parents)
        assert (ROOT / path).exists(), path
        shown.add(path.rstrip("/"))
    for folder in (ROOT / "dft_jax").rglob("__init__.py"):
        assert relative(folder.parent) in shown, f"{folder.parent} is not in the tree"


def test_each_study_is_listed_with_its_question():
    """`python -m experiments` knows every study, and its scripts are there."""
    listed = {studies.readme(name) for name in studies.COMMANDS}
    assert listed == set(STUDIES) - {
        ROOT / "experiments/README.md",
        ROOT / "experiments/lab/README.md",
    }
    for name, (module, *_) in studies.COMMANDS.items():
        assert module_file(module).exists() and studies.question(name)


@pytest.mark.parametrize("page", STUDIES[1:], ids=relative)
def test_each_study_begins_with_its_verdict(page):
    lines = text_of(page).splitlines()
    assert lines[0].startswith("# ") and lines[1] == ""
    heads = [line.partition(" ")[2].partition(".**")[0] for line in lines[2:5]]
    assert heads == ["**Question", "**Answer", "**How sure"]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_every_model_family_is_named(page):
    """Without regard to case and hyphens: OLMo-2 is olmo2."""
    words = re.sub(r"[^a-z0-9]", "", text_of(ROOT / page).lower())
    for family in families.FAMILIES:
        assert family.replace("_", "") in words, family
