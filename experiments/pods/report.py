"""The table of pods, and the picture of what more chips bring, from results.csv.

    python -m experiments.pods.report

Prints the table; draws scaling.png. Nothing is compiled.
"""

from pathlib import Path

from dft_jax import sharding
from dft_jax.models.rematerialisation import OFFLOAD
from experiments import common
from experiments.performance import aot, records
from experiments.pods.compile import GROWING, PODS

HERE = Path(__file__).parent
_LOCAL = {"gemm": "products", "attention": "attention", "memory": "memory"}
_PARTS = _LOCAL | {"collective": "links"}
# What can be sent and copied while the rest is computed, each on its own way.
_BESIDE = ("collective", "network", "host")
_REACHED = 0.8  # of the data sheet's FLOP/s, in aot.CHIPS


def times_s(row: dict[str, str]) -> tuple[float, float]:
    """Of a step: with all that is sent, or copied to the host and back, hidden behind the rest, or
    where one of these takes longer, and with nothing hidden.

    Rows that are older than policies of the host have no time for it.
    """
    spent = {part: float(row.get(f"{part}_ms") or 0.0) / 1e3 for part in (*_LOCAL, *_BESIDE)}
    local = sum(spent[part] for part in _LOCAL)
    return max(local, *(spent[part] for part in _BESIDE)), sum(spent.values())


def mfu(row: dict[str, str], seconds: float) -> float:
    """Needed FLOPs over what the chips' data sheets allow in this time."""
    peak = aot.chip_of(row["device"]).bf16 / _REACHED
    return float(row["model_tflop"]) * 1e12 / (seconds * peak * int(row["chips"]))


def pod_name(row: dict[str, str]) -> str:
    return next((name for name, device in PODS.items() if device == row["device"]), row["device"])


def mesh_text(row: dict[str, str]) -> str:
    """As in `fsdp 16 × sequence 4`: the axes that have more than one device."""
    along = sharding.Sizes(*map(int, row["mesh"].split("x")))._asdict()
    return " × ".join(f"{axis} {size}" for axis, size in along.items() if size > 1)


def table_row(row: dict[str, str]) -> dict[str, str]:
    """Cells of a row that was compiled."""
    low, high = times_s(row)
    xla, plan = float(row["total_gib"]), "–"
    if row["plan_gib"]:
        planned = float(row["plan_gib"])
        plan = f"{planned:.1f} ({100 * (planned / xla - 1):+.0f} %)"
    tokens = float(row["tokens"])
    what = f"adapters of rank {row['rank']}" if row["rank"] != "0" else "all"
    return {
        "model": row["model"],
        "trained": what,
        "pod": pod_name(row),
        "mesh": mesh_text(row),
        "rows of a chip": _rows_text(row),
        "remat": row["remat"],
        "GiB a chip": f"{xla:.1f}",
        "on its host": _host_text(row),
        "plan": plan,
        "collectives of a step": row["collectives"],
        "FLOPs, made / needed": f"{_made_over_needed(row):.2f}",
        "foreseen s": f"{low:.2f} – {high:.2f}",
        "tokens/s/chip": f"{tokens / high / int(row['chips']):,.0f} –"
        f" {tokens / low / int(row['chips']):,.0f}",
        "MFU": f"{100 * mfu(row, high):.0f} – {100 * mfu(row, low):.0f} %",
    }


def _host_text(row: dict[str, str]) -> str:
    """GiB that lie there, and how many GB a step copies."""
    if row["remat"] != OFFLOAD:
        return "–"
    return f"{float(row['host_gib']):.1f} ({float(row['host_gb']):.0f} GB copied)"


def _rows_text(row: dict[str, str]) -> str:
    """`2 × 8,192`; with micro-batches `4 × 1 × 4,096`."""
    factors = [row["rows"], f"{int(row['length']):,}"]
    if row["accumulation"] != "1":
        factors.insert(0, row["accumulation"])
    return " × ".join(factors)


def _made_over_needed(row: dict[str, str]) -> float:
    return float(row["tflop"]) * int(row["chips"]) / float(row["model_tflop"])


def draw(rows: list[dict[str, str]], file: Path) -> None:
    """For each curve, what a step's time goes to, a token of a chip: lower is better."""
    titles = {
        "strong": "1.5B, the paper's step of 131,072 tokens",
        "weak": "8B, 4,096 tokens on each chip",
    }
    there = {row["part"] for row in rows}
    titles = {part: title for part, title in titles.items() if part in there}
    made, axes = common.figure(columns=len(titles), size=(4.2, 3.2))
    for axis, (part, title) in zip(axes[0], titles.items(), strict=True):
        some = sorted((row for row in rows if row["part"] == part), key=lambda r: int(r["chips"]))
        numbers = [int(row["chips"]) for row in some]
        # What was not compiled is a gap.
        sizes = [n for n in GROWING if numbers[0] <= n <= numbers[-1]]
        places, bottoms = [sizes.index(n) for n in numbers], [0.0] * len(some)
        for spent, label in _PARTS.items():
            # Chip-milliseconds for a thousand tokens: as long as it stays, twice the chips are
            # twice as fast.
            heights = [
                1e3 * float(r[f"{spent}_ms"]) * int(r["chips"]) / float(r["tokens"]) for r in some
            ]
            axis.bar(places, heights, bottom=bottoms, label=label)
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
        axis.set(title=title, xlabel="chips (v6e)", ylabel="chip-ms per 1,000 tokens")
        axis.set_xticks(range(len(sizes)), [str(n) for n in sizes])
        axis.set_ylim(0, 1.45 * max(bottoms))
    axes[0][0].legend(frameon=False, ncols=2)
    common.save(made, file)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results.csv")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the picture")
    arguments = parser.parse_args()
    rows = records.read_rows(arguments.results)
    compiled = [row for row in rows if not row.get("error")]
    for part in ("pods", "slices"):
        some = [table_row(row) for row in compiled if row["part"] == part]
        if some:
            print(common.markdown_table(some), end="\n\n")
    for row in rows:
        if row.get("error"):
            print(row["model"], row["device"], mesh_text(row), row["error"])
    draw(compiled, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()
