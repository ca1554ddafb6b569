"""The performance study: its picture and tables come from its CSV files, and every GPU row works on
small shapes.
"""

import json
import pathlib

import numpy as np
import pytest

from experiments.performance import duel, gpu, gpu_rows, parts, records, report, targets, workload

FOLDER = pathlib.Path(__file__).parents[1] / "experiments/performance"


def test_picture_from_the_results(tmp_path):
    if not (FOLDER / "cpu.csv").exists():
        pytest.skip("nothing is measured yet")
    assert (
        report.draw(FOLDER, tmp_path / "figure.png")
        and (tmp_path / "figure.png").stat().st_size > 10_000
    )


def test_readme_repeats_the_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert report.with_tables(text, report.tables(FOLDER)) == text, (
        "python -m experiments.performance.report"
    )


def test_results_are_of_known_rows_and_their_verdicts_follow():
    for name, wanted in (("cpu", targets.CPU), ("gpu", targets.GPU)):
        known = {target.id: target for target in wanted}
        for row in records.read_rows(FOLDER / f"{name}.csv"):
            target = known[row["id"]]
            assert row["verdict"] == (
                target.verdict(float(row["value"])) if row["value"] else "not measured"
            ), row


def test_verdicts():
    higher, lower = targets.Target("a", "", 1.5, 2.0), targets.Target("b", "", 0.3, 0.2, "lower")
    assert [higher.verdict(x) for x in (2.0, 1.5, 1.49)] == ["aim", "floor", "below"]
    assert [lower.verdict(x) for x in (0.2, 0.3, 0.31)] == ["aim", "floor", "below"]


def test_interval_of_a_ratio_holds_the_ratio():
    below = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02])
    value, low, high = duel.ratio_interval(2 * below, below)
    assert value == low == high == 2  # rounds stay together: what slows both cancels
    value, low, high = duel.ratio_interval(2 * below[::-1], below)
    assert low < value < high


def test_a_contender_that_differs_is_not_compared():
    facts = {("ours", "dft/padded"): {"loss": 1.0, "gradient_norm": 2.0, "mean_p": 0.1}}
    facts[("trl", "step")] = {"loss": 1.0 + 5e-5, "gradient_norm": 2.0}
    found = duel.Duel(rounds={key: [{"wall_s": 1.0, "steps": 1}] for key in facts}, facts=facts)
    gate = parts.gate_of("p", found, dict.fromkeys(facts, "dft"), set())
    assert [row["verdict"] for row in gate] == ["equal", "differs"]
    pair = parts.Pair("trl_T_tuned", ("trl", "step"), ("ours", "dft/padded"))
    [row] = parts.results_of("p", [pair], duel.Duel(), {"trl": "gate: differs"}).results
    assert (
        row["value"] is None and row["verdict"] == "not measured" and row["note"] == "gate: differs"
    )


def test_packing_counts_useful_tokens(tmp_path, monkeypatch):
    """Eight packed rows take as long as eight padded ones here, so the ratio is that of their
    useful tokens.
    """

    def run(contenders, **_):
        found = duel.Duel()
        for contender in contenders:
            for case in contender.cases:
                found.rounds[contender.name, case] = [
                    {"wall_s": 2.0, "cpu_s": 4.0, "steps": 1, "peak_gib": 1.0, "minor_faults": 0}
                ] * 7
                found.facts[contender.name, case] = {
                    "loss": 1.0,
                    "gradient_norm": 2.0,
                    "mean_p": 0.1,
                }
        return found

    monkeypatch.setattr(duel, "run", run)
    monkeypatch.setattr(parts, "_efficiencies", lambda settings: [])
    outcome = parts.packing(parts.Settings(tmp_path, {"ours": "python"}, 7, 3, None, None))
    padded, packed = (
        workload.Examples.load(tmp_path / f"examples_{name}.npz") for name in ("padded", "packed")
    )
    ratio = (packed.lengths_N - 1).sum() / (padded.lengths_N - 1).sum()
    assert [row["value"] for row in outcome.results] == [pytest.approx(ratio)] * 2 and 3 < ratio < 5
    assert {row["verdict"] for row in outcome.gate} == {"equal"} and len(outcome.gate) == 3


def test_parts_are_replaced_alone(tmp_path):
    file = tmp_path / "rows.csv"
    records.replace_rows(
        file, "id", {"a", "b"}, [{"id": "a", "value": 1.0}, {"id": "b", "value": None}]
    )
    records.replace_rows(file, "id", {"a"}, [{"id": "a", "value": 2.0, "note": "again"}])
    rows = [{"id": "b", "value": "", "note": ""}, {"id": "a", "value": "2", "note": "again"}]
    assert records.read_rows(file) == rows


@pytest.mark.slow
def test_gpu_rows_on_small_shapes(tmp_path, monkeypatch):
    """Some of them: `gpu --tiny` takes all, but compiles a training step for each of nine, which is
    minutes.
    """
    monkeypatch.setattr(
        gpu_rows, "packed_and_separate", lambda *_: [{"loss": 1.0, "gradient_norm": 1.0}] * 2
    )
    monkeypatch.setitem(gpu.ATTEMPTS, "head", [[64], [256]])
    monkeypatch.setitem(gpu.ATTEMPTS, "train_7b", [["7b", 8, "no such policy"]])
    monkeypatch.setattr(gpu_rows, "training", lambda *_, tiny: {"gap": "out of memory"})
    rows = ["head", "optimizer", "train_7b"]
    assert gpu.table(tmp_path, rows, tiny=True, again=False, in_process=True) == [
        "train_7b",
        "train_7b_mfu",
    ]
    found = {row["id"]: row for row in records.read_rows(tmp_path / "gpu.csv")}
    measured = {"head", "head_memory", "head_dft_over_sft", "optimizer"}
    assert set(found) == measured | {"train_7b", "train_7b_mfu"}
    assert all(float(found[name]["value"]) > 0 for name in measured)
    assert (
        found["train_7b"]["verdict"] == "not measured"
        and "out of memory" in found["train_7b"]["note"]
    )
    assert (
        "jax"
        in json.loads((tmp_path / "gpu_environment.json").read_text())["parts"]["gpu"]["versions"][
            "gpu"
        ]
    )


def test_what_cannot_be_measured_is_a_gap():
    results = gpu.results_of("train_7b", [(["7b", 8, "full"], {"gap": "out of memory"})], None)
    assert [row["id"] for row in results] == ["train_7b", "train_7b_mfu"]
    assert all(row["value"] is None and row["verdict"] == "not measured" for row in results)
    assert gpu_rows.is_rate("decode_7b") and not gpu_rows.is_rate("head")
