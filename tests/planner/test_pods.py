"""Plans against the steps that XLA compiled for pods of TPUs (experiments/pods/results.csv)."""

import pytest

from dft_jax.planner import layouts
from experiments.performance import records
from experiments.pods import compile as pods, report
from tests.marks import slow_but

ROWS = [row for row in records.read_rows(report.HERE / "results.csv") if not row["error"]]
# Experts on all chips and on different ones, adapters, a head that is cut, rows that are cut, and long rows.
PLANNED = [
    ("30b-a3b", "v6e:16x16", "1x256x1", "0"),
    ("30b-a3b", "v5p:4x4x4", "1x16x1x1x4", "0"),
    ("70b", "v6e:16x16", "1x256x1", "8"),
    ("70b", "v6e:16x16", "1x64x4", "0"),
    ("8b", "v6e:16x16", "1x64x1x4", "0"),
    ("8b", "v6e:16x16", "1x256x1", "0"),
]


def row_of(model: str, device: str, mesh: str, rank: str) -> dict[str, str]:
    settings = {"part": "pods", "model": model, "device": device, "mesh": mesh, "rank": rank}
    [row] = [row for row in ROWS if settings.items() <= row.items()]
    return row


def case_of(row: dict[str, str]) -> pods.Case:
    mesh = tuple(int(size) for size in row["mesh"].split("x"))
    numbers = {name: int(row[name]) for name in ("length", "rows", "accumulation", "rank")}
    return pods.Case(row["part"], row["model"], row["device"], mesh, remat=row["remat"], **numbers)


@pytest.mark.parametrize("model, device, mesh, rank", slow_but([], PLANNED))
def test_a_plan_is_within_a_tenth_of_what_was_compiled(model, device, mesh, rank):
    row = row_of(model, device, mesh, rank)
    planned = pods.plan_gib(case_of(row))
    assert planned == pytest.approx(float(row["total_gib"]), rel=0.1)
    # The table says what the planner says.
    assert planned == pytest.approx(float(row["plan_gib"]), rel=1e-6)


def test_the_table_has_a_plan_of_every_step():
    for row in ROWS:
        case = case_of(row)
        assert row["plan_gib"], case
        assert case in pods.CASES and isinstance(pods.layout_of(case), layouts.StepLayout)
