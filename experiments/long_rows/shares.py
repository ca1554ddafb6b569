"""How uneven work is over the devices of `mesh.sequence`: what the one with most has, relative to
the mean, with the positions of a device one after another and as `models.model.balanced` lays them.

    python -m experiments.long_rows.shares --out=experiments/long_rows/shares.csv

NumPy alone: no model and no step. Three kinds of packed rows of 32,768 tokens, of each document the
second half trained; means over 20 rows. Counted are

    pairs     a query and a key that it sees: itself and what is before it in its document
    tiles     512 queries × 512 keys in which the mask of positions has a pair, which are those that
              splash multiplies: what it knows when compiled, and so nothing of documents
    local     the same tiles of layers with a window of 1,024 (Gemma's)
    trained   tokens that the head is multiplied with
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from dft_jax import sharding
from experiments import common
from experiments.performance import records

LENGTH, TILE, WINDOW, ROWS = 32_768, 512, 1024, 20
DEVICES = (2, 4, 8)


def documents(kind: str, rng: np.random.Generator) -> list[int]:
    """Lengths of a row's documents; together LENGTH."""
    lengths: list[int] = []
    while sum(lengths) < LENGTH:
        if kind == "one document":
            drawn = LENGTH
        elif kind == "short":
            # GSM8K with its template: a median of 190 tokens, one in twenty over 350.
            drawn = int(np.exp(rng.normal(np.log(190), 0.37)))
        else:
            # Each order of magnitude as often: from 256 to 16,384.
            drawn = int(256 * 64 ** rng.random())
        lengths.append(min(max(drawn, 2), LENGTH - sum(lengths)))
    return lengths


def tiles_L(window: int | None) -> Int[np.ndarray, " L"]:
    """Tiles that a query's tile is multiplied with, over its number of queries."""
    first_query = np.arange(0, LENGTH, TILE)
    last_key = first_query + TILE - 1
    first_key = np.zeros_like(first_query)
    if window is not None:
        first_key = np.maximum(first_query - window + 1, 0)
    return np.repeat(last_key // TILE - first_key // TILE + 1, TILE)


def work(lengths: list[int]) -> dict[str, Int[np.ndarray, " L"]]:
    """Of each position of a row, by what is counted."""
    places_L = np.concatenate([np.arange(length) for length in lengths])
    length_L = np.repeat(lengths, lengths)
    trained_L: Bool[np.ndarray, " L"] = places_L >= length_L // 2
    return {
        "pairs": places_L + 1,
        "tiles": tiles_L(None),
        "local": tiles_L(WINDOW),
        "trained": trained_L.astype(int),
    }


def largest_share(work_L: Int[np.ndarray, " L"], n: int) -> float:
    """What the device with most has, relative to the mean, of positions as they lie."""
    of_device = work_L.reshape(n, -1).sum(axis=1)
    return float(of_device.max() / of_device.mean())


def shares(kind: str, n: int) -> dict[str, float]:
    """Means over rows, by what is counted: in the order of the row, and balanced."""
    found: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    order_L = sharding.places_in_parts(LENGTH, n)
    for _ in range(ROWS):
        for name, work_L in work(documents(kind, rng)).items():
            found.setdefault(name, []).append(largest_share(work_L, n))
            found.setdefault(f"{name}_balanced", []).append(largest_share(work_L[order_L], n))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, help="CSV file")
    arguments = parser.parse_args()
    lines = []
    for kind in ("one document", "short", "mixed"):
        for n in DEVICES:
            lines.append({"row": kind, "devices": n} | shares(kind, n))
    table = []
    for line in lines:
        cells = {"row": line["row"], "devices": line["devices"]}
        for name in ("pairs", "tiles", "local", "trained"):
            cells[name] = f"{line[name]:.2f} → {line[f'{name}_balanced']:.2f}"
        table.append(cells)
    print(common.markdown_table(table))
    if arguments.out:
        records.write_rows(arguments.out, lines)


if __name__ == "__main__":
    main()
