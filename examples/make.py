"""Makes the notebooks of this folder from its scripts, and executes them.

pip install -e '.[notebooks]'
python examples/make.py                          # all of them, a few minutes
python examples/make.py token_probabilities

A script is cut into cells at its lines `# %%` and `# %% [markdown]`. Each notebook runs in an empty
folder, so that nothing is resumed; the paths of the checkout and of that folder are not stored.
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).parent
ROOT = HERE.resolve().parent
NAMES = ("finetune_and_look", "sft_beside_dft", "token_probabilities")
LARGEST_BYTES = 200_000


def cells(script: str) -> list[tuple[str, str]]:
    """("markdown" or "code", source) of each cell of a script in percent format."""
    found = []
    for part in ("\n" + script).split("\n# %%")[1:]:
        first, _, body = part.partition("\n")
        if "[markdown]" not in first:
            found.append(("code", body.strip("\n")))
            continue
        lines = []
        for line in body.strip("\n").splitlines():
            lines.append(line.removeprefix("#").removeprefix(" "))
        found.append(("markdown", "\n".join(lines)))
    return found


def notebook(script: str) -> Any:
    """A notebook of these cells, without outputs."""
    import nbformat

    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    for number, (kind, source) in enumerate(cells(script)):
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        cell = new(source)
        cell["id"] = f"cell-{number}"  # the same each time, so that differences are readable
        made.cells.append(cell)
    return made


def execute(made: Any, folder: str) -> None:
    """Runs a notebook in `folder`, and leaves in it what a reader wants to see."""
    from nbclient import NotebookClient

    NotebookClient(made, timeout=900, resources={"metadata": {"path": folder}}).execute()
    for cell in made.cells:
        if cell.cell_type != "code":
            continue
        # When a cell ran differs each time, and progress is of no use afterwards.
        cell.metadata.clear()
        kept = []
        for output in cell.outputs:
            if output.get("name") != "stderr":
                kept.append(output)
        cell.outputs = kept


def without_places(text: str, folder: str) -> str:
    """The notebook's JSON without the paths of the machine that made it."""
    for place in (f"{ROOT}/", f"{pathlib.Path(folder).resolve()}/", f"{folder}/"):
        text = text.replace(place, "")
    return text


def main() -> None:
    import nbformat

    names = sys.argv[1:] or NAMES
    for name in names:
        if name not in NAMES:
            sys.exit(f"error: no example {name!r}; known: {', '.join(NAMES)}")
        made = notebook((HERE / f"{name}.py").read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            execute(made, folder)
            text = without_places(nbformat.writes(made), folder)
        json.loads(text)  # still whole
        size = len(text.encode())
        if size > LARGEST_BYTES:
            sys.exit(f"error: {name}.ipynb would have {size:,} bytes; make its figures smaller")
        (HERE / f"{name}.ipynb").write_text(text + "\n", encoding="utf-8")
        print(f"{name}.ipynb: {size:,} bytes")


if __name__ == "__main__":
    main()
