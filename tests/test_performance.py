"""The performance study: its picture and tables come from its CSV files, and every GPU row works on
small shapes.
"""

import json
import os
import pathlib
import sys

import numpy as np
import pytest

from experiments.performance import (
    aot_report,
    duel,
    gpu,
    gpu_gate,
    gpu_process,
    gpu_rows,
    gpu_tools,
    lora,
    parts,
    programs,
    records,
    report,
    targets,
    workload,
)

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
    assert report.with_tables(text, aot_report.tables(FOLDER)) == text, (
        "python -m experiments.performance.aot_report"
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


@pytest.mark.skipif(not (FOLDER / "lora.csv").exists(), reason="nothing is measured yet")
def test_peft_and_ours_have_trained_the_same():
    """In float32 the losses of all steps are those of PEFT + TRL, with adapters and without.

    Without, they part slowly: PyTorch's float32 norm of a gradient [151936, 896] is about 1e-4 too
    small, and so it clips by another factor (README).
    """
    losses = {}
    for step in records.read_rows(FOLDER / "lora_steps.csv"):
        losses.setdefault(step["id"], []).append(float(step["loss"]))
    for trained, limit in (("lora", 1e-5), ("full", 1e-3)):
        ours, other = losses[f"0 ours_{trained}"], losses[f"0 trl_{trained}"]
        assert len(ours) == 20 and ours[0] != ours[-1]
        np.testing.assert_allclose(ours[0], other[0], rtol=1e-6)
        np.testing.assert_allclose(ours, other, rtol=limit)


@pytest.mark.slow
def test_a_side_with_adapters_begins_as_the_model_does(tmp_path):
    """And its later steps are others than those of full fine-tuning."""
    folder, file = FOLDER.parents[1] / "tests/golden/llama", tmp_path / "examples.npz"
    workload.random_examples(96, np.full(6, 24)).save(file)
    lora.write_first_adapter(folder, tmp_path / "adapter")
    work = lora.Work(folder, file, tmp_path / "adapter", batch=2, longest=24, steps=3)
    pythons, steps = {"ours": sys.executable}, {}
    for side in ("ours_lora", "ours_full"):
        row, steps[side], _ = lora.measure(side, work, pythons)
        assert 0 < row["training_peak_gib"] <= row["process_peak_gib"]
    adapted, full = ([step["loss"] for step in steps[side]] for side in steps)
    assert len(adapted) == 3 and adapted[0] == pytest.approx(full[0], rel=1e-6)
    assert adapted[1] != full[1]


def test_parts_are_replaced_alone(tmp_path):
    file = tmp_path / "rows.csv"
    records.replace_rows(
        file, "id", {"a", "b"}, [{"id": "a", "value": 1.0}, {"id": "b", "value": None}]
    )
    records.replace_rows(file, "id", {"a"}, [{"id": "a", "value": 2.0, "note": "again"}])
    rows = [{"id": "b", "value": "", "note": ""}, {"id": "a", "value": "2", "note": "again"}]
    assert records.read_rows(file) == rows


@pytest.fixture
def session(tmp_path):
    """Makes a session on small shapes, in this process."""

    def make(rows: list[str], budget_s: float = 1000, tiny: bool = True, **more) -> gpu.Session:
        how = gpu_process.How(tmp_path, tmp_path / "work", tiny, in_process=True)
        return gpu.Session(tmp_path, rows, how, budget_s, **more)

    return make


def answers(monkeypatch, found: dict, asked: list | None = None, spent_s: float = 0.0) -> None:
    """Attempts that answer what `found` has for their row, after some seconds of a clock."""
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])

    def measure(row, attempt, how):
        now[0] += spent_s
        if asked is not None:
            asked.append((row, attempt, how.attention, how.limit_s))
        return found.get(row, {"value": 1.0, "low": 0.9, "high": 1.1, "note": "", "device": "x"})

    monkeypatch.setattr(gpu_process, "measure", measure)


SOUND = {"gate": [], "attention": "auto", "versions": {}}


@pytest.mark.slow
def test_gpu_rows_on_small_shapes(monkeypatch, session):
    """Some of them: `gpu --tiny` takes all, but compiles a training step for each, which is
    minutes.
    """
    monkeypatch.setattr(gpu_gate, "PARTS", (gpu_gate.head_lines,))
    monkeypatch.setitem(gpu.ATTEMPTS, "head", [[64], [256]])
    monkeypatch.setitem(gpu.ATTEMPTS, "train_7b", [["7b", 8, "no such policy"]])
    monkeypatch.setitem(gpu_rows._MEASURES, "train", lambda *_, **__: {"gap": "out of memory"})
    here = session(["ceilings", "head", "optimizer", "train_7b"])
    assert here.run() == ["train_7b"]
    found = {row["id"]: row for row in records.read_rows(here.out / "gpu.csv")}
    measured = {"head", "head_memory", "head_dft_over_sft", "optimizer"}
    measured |= {"ceilings", "ceilings_copy"}
    assert set(found) == measured | {"train_7b", "train_7b_mfu"}
    assert all(float(found[name]["value"]) > 0 for name in measured)
    gap = found["train_7b"]
    assert gap["verdict"] == "not measured" and "out of memory" in gap["note"]
    known = json.loads((here.out / "gpu_environment.json").read_text())
    assert "jax" in known["parts"]["gpu"]["versions"]["gpu"]


def test_what_cannot_be_measured_is_a_gap():
    results = gpu.results_of("train_7b", [(["7b", 8, "full"], {"gap": "out of memory"})], None)
    assert [row["id"] for row in results] == ["train_7b", "train_7b_mfu"]
    assert all(row["value"] is None and row["verdict"] == "not measured" for row in results)
    assert gpu.is_rate("decode_7b") and not gpu.is_rate("head")


def test_packages_that_come_by_the_path_are_found_by_attempts(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/carried/site")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/somewhere")
    made = gpu_process.environment(gpu_process.How(tmp_path, tmp_path))
    assert made["PYTHONPATH"].split(os.pathsep) == [str(gpu_process.ROOT), "/carried/site"]
    assert made["XLA_FLAGS"].startswith("--xla_dump_to=/somewhere --xla_gpu_per_fusion_autotune")


def test_rows_and_gate_run_the_backend_that_auto_comes_to(monkeypatch):
    asked = []

    def with_attention(model, name):
        asked.append(name)
        return model

    monkeypatch.setattr(programs.models, "with_attention", with_attention)
    programs.train("1.5b", 2, "none", tiny=True)
    programs.recipe("1.5b", 2, tiny=True)
    assert asked == ["auto", "auto"]


def test_an_attempt_that_cannot_fit_is_none(monkeypatch, session):
    lines = {("train_7b", "7b 16 full 1"): {"total_gib": "70.5", "predicted_ms": "1"}}
    lines[("train_7b", "7b 8 dots")] = {"total_gib": "120", "predicted_ms": "1"}
    for line in lines.values():
        line["made"] = "20"
    monkeypatch.setattr(gpu, "aot_lines", lambda device_gib: lines)
    asked = []
    first = {"value": 1.0, "low": 1, "high": 1, "note": "", "device": "x", "limit_gib": 75.6}
    answers(monkeypatch, {"ceilings": first, "gate": SOUND}, asked)
    here = session(["ceilings", "train_7b"], tiny=False)
    assert here.run() == []
    assert ("train_7b", ["7b", 8, "dots"]) not in [(row, one) for row, one, *_ in asked]
    found = dict((gpu.fields(one), found) for one, found in here.attempts["train_7b"])
    assert found["7b 8 dots"]["gap"] == "not tried: XLA allocates 120.0 GiB, and 75.6 are given"
    assert found["7b 16 full 1"]["predicted"] == 20_000


def test_the_budget_ends_a_session_in_time(monkeypatch, session, capsys):
    asked = []
    answers(monkeypatch, {"gate": SOUND}, asked, spent_s=50)
    here = session(["head", "optimizer", "train_1.5b"], budget_s=260)
    assert here.run() == []  # what was not started has not failed
    # the second attempts come after the first ones of all rows, each with no more than is left
    assert [row for row, *_ in asked] == ["gate", "head", "optimizer", "train_1.5b", "head"]
    assert asked[-1][3] == 50
    said = capsys.readouterr().out
    assert "not started, the budget is spent: train_1.5b 1.5b 12 none" in said
    kept = json.loads((here.out / "gpu_attempts.json").read_text())
    assert [len(kept[row]) for row in ("head", "optimizer", "train_1.5b")] == [2, 1, 1]
    # the next call goes on with the rest
    asked.clear()
    session(["head", "optimizer", "train_1.5b"]).run()
    rest = [one for row, one, *_ in asked if row != "gate"]
    assert rest == gpu.ATTEMPTS["train_1.5b"][1:]


def test_a_kernel_that_differs_is_not_used_and_a_head_that_differs_ends_all(monkeypatch, session):
    kernel = gpu_gate.line("cudnn packed", float("nan"), 0.15, "cudnn", required=False)
    head = gpu_gate.line("head", 1e-6, 1e-4)
    asked = []
    gate = {"gate": [head, kernel], "attention": "blocked", "versions": {}}
    answers(monkeypatch, {"gate": gate}, asked)
    here = session(["optimizer"])
    assert here.run() == []
    assert [how for row, _, how, _ in asked] == ["auto", "blocked"]
    gate["gate"] = [gpu_gate.line("head", 1e-2, 1e-4), kernel]
    asked.clear()
    assert session(["optimizer"], again=True).run() == ["gate: head"]
    assert [row for row, *_ in asked] == ["gate"]


def test_what_is_not_installed_has_not_failed(monkeypatch, session):
    gap = {"gap": "torch, trl not installed"}
    answers(monkeypatch, {"gate": SOUND, "torch_eager": gap, "recipe": {"gap": "RESOURCE"}})
    assert session(["torch_eager", "recipe"]).run() == ["recipe"]


def test_the_profile_is_of_the_best_attempt(monkeypatch, session):
    asked = []
    answers(monkeypatch, {"gate": SOUND}, asked)
    here = session(["train_1.5b", "profile"])
    here.attempts["train_1.5b"] = [
        [["1.5b", 8, "none"], {"gap": "out of memory"}],
        [["1.5b", 16, "dots"], {"value": 1.0, "low": 1, "high": 1, "note": ""}],
    ]
    here.attempt("profile", ["train_1.5b"])
    assert asked[-1][:2] == ("profile", ["train_1.5b", "1.5b", 16, "dots"])
    here.attempts.clear()
    here.attempt("profile", ["train_1.5b"])
    assert here.attempts["profile"][0][1]["gap"] == "needs train_1.5b"


@pytest.mark.slow
def test_the_gate_tries_the_kernel_with_the_heads_of_models(monkeypatch):
    """On a CPU the kernel is `blocked` itself, which is what it should be."""
    monkeypatch.setattr(gpu_gate, "_KERNELS", {"cpu": "blocked"})
    monkeypatch.setattr(gpu_gate, "_MODELS", ("1.5b",))
    lines = gpu_gate.kernel_lines(tiny=True)
    assert [line["case"].rpartition(", ")[2] for line in lines] == ["output", "dq", "dk", "dv"]
    assert all(line["verdict"] == "equal" and not line["required"] for line in lines)


def test_kernels_by_time_from_a_trace():
    def named(kind, pid, tid, name):
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}

    events = [
        named("process_name", 1, 0, "/device:GPU:0"),
        named("process_name", 2, 0, "/host:CPU"),
        named("thread_name", 1, 7, "Stream #7(Compute)"),
        named("thread_name", 1, 8, "XLA Ops"),
        named("thread_name", 2, 7, "python"),
    ]
    for pid, tid, name, dur in (
        (1, 7, "fusion.12", 1000.0),
        (1, 7, "fusion.13", 2000.0),
        (1, 7, "gemm", 5000.0),
        (1, 8, "gemm", 5000.0),  # the same again, by its operation
        (2, 7, "dispatch", 9000.0),
    ):
        events.append({"ph": "X", "pid": pid, "tid": tid, "name": name, "dur": dur})
    assert gpu_tools.kernels_of({"traceEvents": events}) == [
        {"name": "gemm", "calls": 1, "ms": 5.0},
        {"name": "fusion", "calls": 2, "ms": 3.0},
    ]


def test_a_gate_line_differs_where_there_is_no_number():
    assert gpu_gate.line("x", float("nan"), 1.0)["verdict"] == "differs"
    values = {"loss": 1.0, "gradient_norm": float("nan"), "mean_p": 0.5}
    assert np.isnan(gpu_gate.facts_difference(values, {"loss": 1.0, "gradient_norm": 1.0}))
