"""Evaluations side by side: differences against a direct computation, gaps, the picture."""

import csv
import json

import numpy as np
import pytest

from dft_jax.analysis import compare, comparison, comparison_report, figures
from dft_jax.evals import report, scores
from tests import commands
from tests.commands import run_command


def result(benchmark, share_of, temperature=1.0, k=4, votes=None, digests=None):
    """As in scores.json; `share_of` has multiples of 1/k."""
    value_P = np.array(list(share_of.values()))
    average = scores.mean_of_shares(value_P)
    made = {
        "benchmark": benchmark,
        "temperature": temperature,
        "problems": {"scored": len(share_of)},
        "samples_per_problem": k,
        "avg_at_k": {
            "k": k,
            "mean": average.mean,
            "standard_error": 0.01,
            "interval_95": average.interval_95,
        },
        "pass_at_k": {str(k): float((value_P > 0).mean())},
        "maj_at_k": {"k": k, "mean": float((value_P > 0.5).mean())},
        "correct_share_of_problem": share_of,
        "majority_correct_of_problem": {id_: share > 0.5 for id_, share in share_of.items()},
        "sha256_of_problem": digests or {id_: f"digest of {id_}" for id_ in share_of},
        "sha256_is_of": "question and reference",
        "mean_token_entropy": 0.8,
        "mean_length_tokens": None,
        "truncation_rate": 0.25,
    }
    return made


def shares(seed, n=50, shift=0.0, k=4):
    difficulty = np.random.default_rng(0).uniform(size=n)
    chance = np.clip(difficulty + shift + 0.1 * np.random.default_rng(seed).normal(size=n), 0, 1)
    return {str(i): float(share) for i, share in enumerate(np.rint(chance * k) / k)}


@pytest.fixture
def runs(tmp_path):
    """base and sft as evaluations, dft as a run directory with evaluations at steps 9 and 10."""
    content = {
        "base": [
            result("math500", shares(1)),
            result("gsm8k", shares(2)),
            result("gsm8k", shares(3), 0.0, 1),
        ],
        "sft": [result("math500", shares(4, shift=0.05))],
        "dft": [result("math500", shares(5, shift=0.2)), result("gsm8k", shares(6, shift=0.2))],
    }
    folders = {
        "base": tmp_path / "base",
        "sft": tmp_path / "sft",
        "dft": tmp_path / "dft" / "eval" / "10",
    }
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps({"results": content[name]}))
    (tmp_path / "dft" / "eval" / "9").mkdir()
    (tmp_path / "dft" / "eval" / "9" / "scores.json").write_text(json.dumps({"results": []}))
    return tmp_path


def row_of(rows, **values):
    (found,) = [
        row for row in rows if all(row.get(name) == value for name, value in values.items())
    ]
    return found


def test_differences_are_paired_over_problems(runs):
    rows = comparison.compare(
        [comparison.read(f"{runs}/{name}") for name in ("base", "sft", "dft")]
    ).rows
    row = row_of(rows, benchmark="math500", run="dft", temperature=1.0)
    base, dft = (np.array(list(s.values())) for s in (shares(1), shares(5, shift=0.2)))
    assert row["difference"] == pytest.approx(np.mean(dft - base))
    padded = np.append(dft - base, [-0.5, 0.5])  # 1/√4 for four samples
    error = np.std(padded, ddof=1) / np.sqrt(52)
    assert row["difference_low"] == pytest.approx(padded.mean() - 2.008 * error, abs=1e-4)
    assert row["difference_high"] == pytest.approx(padded.mean() + 2.008 * error, abs=1e-4)
    assert row["difference_p"] < 0.001 and row["difference_holm"]
    passes = (dft > 0).astype(float) - (base > 0)
    assert row["pass_at_k_difference"] == pytest.approx(passes.mean())
    assert row["maj_at_k_difference"] == pytest.approx(
        ((dft > 0.5).astype(float) - (base > 0.5)).mean()
    )
    assert row["pass_at_k_difference_low"] < passes.mean() < row["pass_at_k_difference_high"]
    assert row["maj_at_k_low"] < row["maj_at_k"] < row["maj_at_k_high"]
    unpaired = np.hypot(np.std(dft), np.std(base)) / np.sqrt(50)
    assert error < unpaired / 2, "the pairing is what this is for"
    assert "difference" not in row_of(rows, benchmark="math500", run="base")
    mean = row_of(rows, benchmark="mean", run="dft")
    assert mean["avg_at_k"] == pytest.approx(
        np.mean([dft.mean(), np.mean(list(shares(6, shift=0.2).values()))])
    )
    assert mean["difference_low"] < mean["difference"] < mean["difference_high"]
    assert mean["pass_at_k_low"] < mean["pass_at_k"] < mean["pass_at_k_high"] and mean["k"] == 4


def test_a_missing_benchmark_is_a_gap(runs):
    made = comparison.compare(
        [comparison.read(f"{runs}/{name}") for name in ("base", "sft", "dft")]
    )
    rows, warnings = made.rows, made.warnings
    assert [
        row["run"] for row in rows if row["benchmark"] == "gsm8k" and row["temperature"] == 1
    ] == ["base", "dft"]
    assert [row["run"] for row in rows if row["benchmark"] == "mean"] == ["base", "dft"]
    assert warnings == ["sft has no gsm8k at T=1: a gap", "sft has no gsm8k at greedy: a gap"] + [
        "dft has no gsm8k at greedy: a gap"
    ]


def test_other_settings_are_said(runs):
    content = {
        "results": [result("gsm8k", shares(1))],
        "settings": {"prompt": "plain", "samples": 4, "workers": 2},
    }
    other = content | {
        "settings": {"prompt": "qwen-boxed", "samples": 4, "workers": 3},
        "grader": {"mode": "strict"},
    }
    for name, text in (("lr=1e-5", content), ("b", other)):
        (runs / name).mkdir()
        (runs / name / "scores.json").write_text(json.dumps(text))
    warnings = comparison.compare(
        [comparison.read(f"{runs}/lr=1e-5"), comparison.read(f"{runs}/b")]
    ).warnings
    assert warnings == ["b has prompt='qwen-boxed', lr=1e-5 has 'plain'"]


def test_another_version_of_a_benchmark_is_said_where_both_have_it():
    content = {"results": [result("gsm8k", shares(1))]}
    versions = [{"gsm8k": 1}, {"gsm8k": 2, "aime24": 7}, {}]
    evaluations = []
    for name, known in zip("abc", versions, strict=True):
        evaluations.append(comparison.of_summary(name, content | {"benchmark_versions": known}))
    assert comparison.compare(evaluations).warnings == ["b has version of gsm8k=2, a has 1"]


@pytest.mark.parametrize(
    "key, warning",
    [
        ("image_pixels", "fewest and most pixels of an image of gsm8k=[4, 8], a has [4, 16]"),
        ("stop_texts", "texts that end a completion of gsm8k=[4, 8], a has [4, 16]"),
    ],
)
def test_what_was_asked_of_a_benchmark_is_compared(key, warning):
    content = {"results": [result("gsm8k", shares(1))]}
    asked = {"a": {"gsm8k": [4, 16]}, "b": {"gsm8k": [4, 8], "aime24": [1, 2]}, "c": {}}
    read = [comparison.of_summary(name, content | {key: value}) for name, value in asked.items()]
    assert comparison.compare(read).warnings == [f"b has {warning}"]


def test_how_programs_are_judged_is_compared_and_fences_are_not():
    content = {"results": [result("gsm8k", shares(1))]}
    judged = [{"rules": 1, "python": "3.11.4", "fences": ["limits"]}]
    judged.append({"rules": 2, "python": "3.11.4", "fences": ["limits", "landlock"]})
    read = []
    for name, programs in zip("ab", judged, strict=True):
        read.append(comparison.of_summary(name, content | {"grader": {"programs": programs}}))
    assert comparison.compare(read).warnings == ["b has rules of programs=2, a has 1"]


def model_of(sha256, run_id="5f0c", **base):
    """As the `model` of a scores.json."""
    base = {
        "path": "Qwen/Q",
        "revision": "main",
        "commit": None,
        "init": "checkpoint",
        "sha256": sha256,
    } | base
    return {"name": "x", "step": 390, "origin": {"run_id": run_id, "base": base}}


def test_what_was_evaluated_is_said_and_other_bases_are_warned_about(runs):
    """Two runs under one path may have begun with other weights."""
    models = {
        "base": None,
        "sft": model_of("a" * 64, commit="c" * 40),
        "dft": model_of("b" * 64, "77aa"),
    }
    read = [
        comparison.Evaluation(name, {("gsm8k", 1.0): result("gsm8k", shares(1))}, {}, models[name])
        for name in models
    ]
    made = comparison.compare(read)
    assert made.warnings == [
        "dft began with other weights than sft: part of any difference may be theirs"
    ]
    assert comparison_report.text(made).splitlines()[-2:] == [
        f"sft: run 5f0c, step 390, begun with Qwen/Q at {'c' * 12}, weights {'a' * 12}",
        f"dft: run 77aa, step 390, begun with Qwen/Q, weights {'b' * 12}",
    ]
    same = [
        comparison.Evaluation(name, each.results, {}, models["sft"])
        for name, each in zip("ab", read, strict=False)
    ]
    assert comparison.compare(same).warnings == []
    content = json.loads((runs / "sft" / "scores.json").read_text()) | {"model": models["sft"]}
    (runs / "sft" / "scores.json").write_text(json.dumps(content))
    assert comparison.read(f"{runs}/sft").model == models["sft"]


@pytest.mark.parametrize(
    "model", [None, {}, [], {"origin": None}, {"origin": {"base": []}}, {"name": "older"}]
)
def test_older_evaluations_do_not_say_what_they_are_of(model):
    assert report.origin_text(model) == "" and report.base_of(model) == {}


def test_the_base_itself_and_random_weights_are_named():
    itself = {"origin": {"base": {"path": "/base", "sha256": "d" * 64}}}  # a Hugging Face folder
    assert report.origin_text(itself) == f"/base, weights {'d' * 12}"
    drawn = {
        "run_id": "5f0c",
        "step": 2,
        "origin": {"base": {"path": "/base", "init": "random", "sha256": None}},
    }
    assert report.origin_text(drawn) == "run 5f0c, step 2, begun with /base, random weights"


@pytest.mark.parametrize("section,name,values", [
    ("settings", "prompt", ("plain", "tokenizer")),
    ("settings", "instruction", ("", "Think.")),
    ("settings", "answer_prefix", ("", "Sure.")),
    ("settings", "max_new_tokens", (0, 512)),
    ("settings", "top_p", (1.0, 0.9)),
    ("grader", "mode", ("strict", "paper")),
    ("grader", "versions", ({"sympy": "1.13"}, {"sympy": "1.14"})),
    ("", "stop_ids", ([0], [0, 5])),
    ("", "compute_dtype", ("float32", "bfloat16")),
])  # fmt: skip
def test_each_setting_that_matters_is_compared(section, name, values, tmp_path):
    for run, value in zip(("a", "b"), values, strict=True):
        (tmp_path / run).mkdir()
        content = {"results": [result("gsm8k", shares(1))]}
        if section:
            content[section] = {name: value}
        else:
            content[name] = value
        (tmp_path / run / "scores.json").write_text(json.dumps(content))
    warnings = comparison.compare(
        [comparison.read(f"{tmp_path}/{run}") for run in ("a", "b")]
    ).warnings
    assert warnings == [f"b has {name}={values[1]!r}, a has {values[0]!r}"]


def compared(*results):
    """A comparison of evaluations a, b, … with these results."""
    names = "abc"[: len(results)]
    evaluations = [
        comparison.Evaluation(name, {(r["benchmark"], r["temperature"]): r})
        for name, r in zip(names, results, strict=True)
    ]
    return comparison.compare(evaluations)


def test_problems_in_one_run_only_are_said():
    made = compared(
        result("math500", {"1": 0.0, "2": 1.0, "3": 0.5}),
        result("math500", {"2": 0.5, "3": 0.5, "9": 1.0}),
    )
    assert made.rows[1]["difference"] == -0.25
    assert made.warnings == [
        "math500, a and b: 2 problems are in one only; the difference is over 2"
    ]


def reversed_file(share_of):
    """The same problems under the numbers that their rows have in the reversed file."""
    n = len(share_of)
    turned = {str(n - 1 - int(id_)): share for id_, share in reversed(share_of.items())}
    return turned, {str(n - 1 - int(id_)): f"digest of {id_}" for id_ in share_of}


@pytest.mark.parametrize("benchmark", ["gsm8k", "minerva", "aime25"])
def test_a_reversed_file_is_the_same_benchmark(benchmark):
    """Ids are numbers of rows there: a model's difference to itself is 0, another as before."""
    base, other = shares(1), shares(2, shift=0.2)
    turned, digests = reversed_file(base)
    made = compared(result(benchmark, base), result(benchmark, turned, digests=digests))
    row = made.rows[1]
    assert row["difference"] == row["pass_at_k_difference"] == row["maj_at_k_difference"] == 0
    assert row["difference_low"] is None and row["difference_p"] == 1 and not row["difference_holm"]
    assert made.warnings == [] and "equal on every problem" in comparison_report.text(made)
    turned, digests = reversed_file(other)
    straight = compared(result(benchmark, base), result(benchmark, other)).rows[1]
    assert (
        compared(result(benchmark, base), result(benchmark, turned, digests=digests)).rows[1]
        == straight
    )


def test_other_problems_under_the_same_ids_are_not_paired():
    unchanged = shares(1)
    changed = {str(i): f"digest of {i}" for i in range(50)} | {"7": "another"}
    for benchmark, expected in [
        (
            "math500",
            "1 problems of the same id have another question or answer (7); no difference is made",
        ),
        ("gsm8k", "2 problems are in one only; the difference is over 49"),
    ]:
        made = compared(result(benchmark, unchanged), result(benchmark, shares(2), digests=changed))
        assert made.warnings == [f"{benchmark}, a and b: {expected}"]
        assert ("difference" in made.rows[1]) == (benchmark == "gsm8k")
    strangers = {str(i): f"stranger {i}" for i in range(50)}
    made = compared(result("gsm8k", unchanged), result("gsm8k", shares(2), digests=strangers))
    assert made.warnings == [
        "gsm8k, a and b: they have no problem in common; no difference is made"
    ]
    assert "difference" not in made.rows[1] and made.differences == []


def test_one_question_asked_twice_is_paired_in_order():
    digests = {"0": "x", "1": "y", "2": "x"}
    other = {"0": "y", "1": "x", "2": "x"}
    first = result("gsm8k", {"0": 0.0, "1": 0.5, "2": 1.0}, digests=digests)
    second = result("gsm8k", {"0": 0.5, "1": 0.25, "2": 1.0}, digests=other)
    assert compared(first, second).rows[1]["difference"] == pytest.approx(0.25 / 3)


def test_scores_of_an_older_version_are_paired_by_id_with_a_word():
    """They have neither digests nor the problems' votes; their intervals are made anew."""
    old = result("gsm8k", shares(1))
    for key in ("majority_correct_of_problem", "sha256_of_problem", "sha256_is_of"):
        del old[key]
    made = compared(old, result("gsm8k", shares(2)))
    assert made.warnings == [
        "gsm8k, a and b: scores of an older version do not say which problems they are of;"
        " paired by id, unchecked"
    ]
    row = made.rows[1]
    assert (
        "difference" in row and "pass_at_k_difference" in row and "maj_at_k_difference" not in row
    )
    assert (
        made.rows[0]["maj_at_k"] == old["maj_at_k"]["mean"] and "maj_at_k_low" not in made.rows[0]
    )
    graded = result("gsm8k", shares(3)) | {"sha256_is_of": "reference"}
    [line] = compared(graded, result("gsm8k", shares(2))).warnings
    assert "only its references" in line and "unchecked" in line


def test_other_numbers_of_samples_are_compared_in_avg_only():
    made = compared(result("gsm8k", shares(1)), result("gsm8k", shares(2, k=2), k=2))
    row = made.rows[1]
    assert (
        "difference" in row
        and "pass_at_k_difference" not in row
        and "maj_at_k_difference" not in row
    )
    assert made.warnings == [
        "gsm8k at T=1, a and b: 4 and 2 samples of each problem: pass@k and maj@k are not compared"
    ]


def test_marks_count_all_differences():
    """One difference of p 0.02 or so is marked alone, and not beside eleven others."""
    better = shares(1) | {str(i): 1.0 for i in range(6)}
    base = shares(1) | {str(i): 0.0 for i in range(6)}
    one = compared(result("gsm8k", base, k=1), result("gsm8k", better, k=1))
    [difference] = one.differences
    assert difference.row["difference_holm"] and 0.01 < difference.row["difference_p"] < 0.05
    assert "+12.0*" in comparison_report.text(one)
    several = [
        result("gsm8k", each, temperature, 1)
        for each in (base, better)
        for temperature in (0.0, 0.5, 1.0)
    ]
    evaluations = [
        comparison.Evaluation(name, {("gsm8k", r["temperature"]): r for r in results})
        for name, results in (("a", several[:3]), ("b", several[3:]))
    ]
    made = comparison.compare(evaluations)
    assert len(made.differences) == 3 and not any(
        each.row["difference_holm"] for each in made.differences
    )
    assert (
        "3 differences to a; * marks the 0 that are more than chance with all 3 counted"
        in comparison_report.text(made)
    )


def test_nothing_printed_has_no_width():
    """All or nothing right: neither 0.0 to 0.0 nor 100.0 to 100.0, nor ± 0.0."""
    made = compared(
        result("gsm8k", {str(i): 0.0 for i in range(30)}),
        result("gsm8k", {str(i): 1.0 for i in range(30)}),
    )
    text = comparison_report.text(made)
    for part in ("0.0 to 0.0", "100.0 to 100.0", "± 0.0"):
        assert f" {part} " not in text
    assert "0.0 to 9.5" in text and "90.5 to 100.0" in text and "+100.0*" in text
    assert report.interval_text((0.0, 0.0003)) == "0.00 to 0.03"
    assert report.interval_text((0.99997, 1.0)) == "99.997 to 100.000"


def test_command(runs, capfd, monkeypatch):
    arguments = [f"{runs}/base", f"{runs}/sft", f"Δ-model={runs}/dft", f"--out={runs}/out"]
    outcome = run_command(compare.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0].split()[:4] == ["benchmark", "T", "run", "problems"]
    assert any(line.startswith("math500") and "Δ-model" in line and "+" in line for line in lines)
    sheet = list(csv.DictReader((runs / "out" / "comparison.csv").read_text().splitlines()))
    first_table = lines[1 : lines.index("")]
    assert len(sheet) == len(first_table) and {row["run"] for row in sheet} == {
        "base",
        "sft",
        "Δ-model",
    }
    assert (runs / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "warning: sft has no gsm8k" in outcome.stderr


@pytest.mark.parametrize("name", ["_base", r"$\frac$", "a$b$c"])
def test_pictures_have_names_as_they_are(name, runs, monkeypatch):
    """matplotlib leaves names with _ out of a legend, and reads what is between $ as mathematics."""
    texts = []
    plt = figures.pyplot()
    close = plt.close

    def closed(figure):
        for text in figure.axes[0].get_legend().get_texts():
            texts.append(text.get_text().replace(r"\$", "$").removeprefix("\u200b"))
        close(figure)

    monkeypatch.setattr(plt, "close", closed)
    made = comparison.compare([comparison.of_folder(str(runs / "base"), name)])
    comparison_report.plot(made.rows, runs / "bars.png")
    figures.plot_histogram({name: [1 / figures.N_BINS] * figures.N_BINS}, runs / "histogram.png")
    assert texts == [name, name]


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ([], ["RUN", "is required"]),
        (["{}/none"], ["none: no scores.json there", "dft_jax.evaluate"]),
        (["{}/base", "{}/base"], ["two runs are called 'base'; name them: name=folder"]),
        (["{}/base", "--ouput=x"], ["ouput"]),
        (["{}/base", "--out={}/base/scores.json"], ["cannot be made", "another folder"]),
        (["{}/base", "--out=gs://bucket"], ["--out=gs://bucket: give a local or mounted folder"]),
        (["{}/broken"], ["scores.json:1: not JSON"]),
        (["{}/old"], ["no results in it; evaluate again"]),
        (["{}/empty"], ["no results in it; evaluate again"]),
        (["{}/cut"], ["cut/scores.json: results[0].pass_at_k is missing; evaluate again"]),
        (["{}/no_k"], ["no_k/scores.json: results[0].pass_at_k.4 is missing; evaluate again"]),
        (
            ["{}/share"],
            ["results[0].correct_share_of_problem should be an object of numbers from 0 to 1"],
        ),
        (
            ["{}/votes"],
            [
                "results[0].majority_correct_of_problem has other problems"
                " than correct_share_of_problem"
            ],
        ),
        (["{}/text"], ["results[1] should be an object; evaluate again"]),
        (["{}/twice"], ["results[1] has the benchmark and temperature of results[0]"]),
        (
            ["{}/nan"],
            [
                "nan/scores.json: cannot be read (ValueError: NaN is no number of JSON);"
                " evaluate again"
            ],
        ),
        (["{}/huge"], ["results[0].mean_length_tokens should be a finite number or null, not int"]),
        (["{}/settings"], ["settings/scores.json: settings should be an object"]),
        (["{}/pixels"], ["pixels/scores.json: image_pixels should be an object"]),
        (["{}/programs"], ["programs/scores.json: grader.programs should be an object"]),
    ],
)
def test_bad_input_is_refused(arguments, expected, runs, capfd, monkeypatch):
    for name, text in (("broken", "{"), ("old", "{}"), ("empty", '{"results": []}')):
        (runs / name).mkdir()
        (runs / name / "scores.json").write_text(text)
    whole = result("gsm8k", shares(1))
    damaged = {
        "cut": [{key: value for key, value in whole.items() if key != "pass_at_k"}],
        "no_k": [whole | {"pass_at_k": {"1": 0.5}}],
        "share": [whole | {"correct_share_of_problem": {"1": 1.5}}],
        "votes": [whole | {"majority_correct_of_problem": {"1": True}}],
        "text": [whole, "no result"],
        "twice": [whole, whole],
        "nan": [whole | {"mean_token_entropy": float("nan")}],
        "huge": [whole | {"mean_length_tokens": 10**400}],
        "settings": [whole],
        "pixels": [whole],
        "programs": [whole],
    }
    more = {"settings": {"settings": []}, "pixels": {"image_pixels": []}}
    more["programs"] = {"grader": {"programs": 3}}
    for name, results in damaged.items():
        (runs / name).mkdir()
        content = {"results": results, **more.get(name, {})}
        (runs / name / "scores.json").write_text(json.dumps(content))
    given = [argument.replace("{}", str(runs)) for argument in arguments]
    commands.check_refused(compare.main, given, expected, runs, capfd, monkeypatch)
