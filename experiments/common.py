"""What several studies need: command lines, tables, and figures."""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dft_jax.analysis.figures import pyplot

HERE = pathlib.Path(__file__).parent


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser whose --help shows a script's docstring as it stands."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def out_folder(default: pathlib.Path) -> pathlib.Path:
    """Where a notebook puts figures and tables: `default`, or the folder of --out."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=pathlib.Path, default=default, help="folder for figures")
    out = arguments.parse_known_args()[0].out  # a notebook's kernel has arguments of its own
    out.mkdir(parents=True, exist_ok=True)
    return out


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with the columns of all rows, in the order of their first use."""
    names: list[str] = []
    for row in rows:
        names += [name for name in row if name not in names]
    lines = [names, ["---"] * len(names)]
    for row in rows:
        lines.append([str(row.get(name, "")) for name in names])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(
    columns: int = 1, lines: int = 1, size: tuple[float, float] = (3.6, 2.9), **options: Any
):
    """A figure and its axes, an array [lines, columns]; `size` is that of one panel, in inches."""
    made, axes = pyplot().subplots(
        lines,
        columns,
        figsize=(size[0] * columns, size[1] * lines),
        layout="constrained",
        squeeze=False,
        **options,
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made, file: pathlib.Path, dpi: int = 150) -> None:
    """Writes a figure, and says where it is."""
    made.savefig(file, dpi=dpi)
    pyplot().close(made)
    print(file)
