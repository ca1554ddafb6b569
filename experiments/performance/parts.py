"""The parts of the CPU table. Each measures some rows and returns an `Outcome`."""

import dataclasses
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

from experiments.performance import duel, records, targets, workload
from experiments.performance.duel import Contender, Duel

LOSS_LIMIT, NORM_LIMIT = 1e-5, 1e-4  # relative; float32, the same numbers added in another order
TARGETS = {target.id: target for target in targets.CPU}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line says."""

    work: Path  # checkpoints, logs, caches
    pythons: dict[str, str]  # ours, torch, tunix
    rounds: int
    steps: int
    data: Path | None  # a folder with gsm8k_train.jsonl
    tokenizer: Path | None


@dataclasses.dataclass
class Outcome:
    """Rows for each of the files, and versions by contender."""

    results: list[dict]
    rounds: list[dict] = dataclasses.field(default_factory=list)
    gate: list[dict] = dataclasses.field(default_factory=list)
    versions: dict[str, dict] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A result of a comparison: the time of one member over that of another, each (contender,
    case).
    """

    id: str
    above: tuple[str, str]
    below: tuple[str, str]
    scale: float = 1.0  # of the ratio: how many times as much `below` makes in a step
    note: str = ""


def results_of(part: str, pairs: list[Pair], found: Duel, excluded: dict[str, str]) -> Outcome:
    """Ratios with intervals and absolute numbers; a member that failed or is excluded is a gap."""
    results, steps_s = [], {key: duel.step_s(rounds) for key, rounds in found.rounds.items()}
    reasons = found.failed | excluded
    for pair in pairs:
        target, about = TARGETS[pair.id], {"note": pair.note}
        missing = [name for name in (pair.above[0], pair.below[0]) if name in reasons]
        if missing or not {pair.above, pair.below} <= steps_s.keys():
            results.append(
                records.result(
                    target, None, note="; ".join(reasons[name] for name in missing) or "not run"
                )
            )
            continue
        interval = duel.ratio_interval(steps_s[pair.above], steps_s[pair.below])
        value, low, high = (pair.scale * number for number in interval)
        for side, key in (("ours", pair.below), ("peer", pair.above)):
            rounds = found.rounds[key]
            about[f"{side}_is"] = " ".join(key)
            about[f"{side}_step_s"] = float(np.median(steps_s[key]))
            about[f"{side}_cpu_s"] = float(np.median([r["cpu_s"] / r["steps"] for r in rounds]))
            about[f"{side}_peak_gib"] = rounds[-1]["peak_gib"]
        about |= {
            "rounds": len(found.rounds[pair.below]),
            "steps_per_round": found.rounds[pair.below][0]["steps"],
        }
        results.append(records.result(target, value, (low, high), **about))
    lines = [
        {"part": part, "contender": contender, "case": case, "round": number}
        | {name: spent[name] for name in ("steps", "wall_s", "cpu_s", "peak_gib", "minor_faults")}
        for (contender, case), rounds in found.rounds.items()
        for number, spent in enumerate(rounds)
    ]
    return Outcome(results, lines, versions=found.versions)


def gate_of(
    part: str, found: Duel, objective_of: dict[tuple[str, str], str], inexact: set[str]
) -> list[dict]:
    """Loss and gradient norm of everybody's first step against ours; contenders in `inexact` are
    only reported.
    """
    rows = []
    references = {
        objective_of[key]: facts for key, facts in found.facts.items() if key[0] == "ours"
    }
    for key, facts in found.facts.items():
        reference = references.get(objective_of[key])
        if not reference or not {"loss", "gradient_norm"} <= facts.keys():
            rows.append({"part": part, "contender": key[0], "case": key[1], "verdict": "missing"})
            continue
        loss, norm = (abs(facts[name] / reference[name] - 1) for name in ("loss", "gradient_norm"))
        verdict = "equal" if loss <= LOSS_LIMIT and norm <= NORM_LIMIT else "differs"
        about = {"part": part, "contender": key[0], "case": key[1], "objective": objective_of[key]}
        about |= {name: facts[name] for name in ("loss", "gradient_norm")} | {
            "mean_p": reference["mean_p"]
        }
        verdict = "another arithmetic" if key[0] in inexact else verdict
        rows.append(about | {"loss_difference": loss, "norm_difference": norm, "verdict": verdict})
    return rows


def steps(settings: Settings, model: str, is_tuned: bool) -> Outcome:
    """The training step of every contender on one model with one setting of malloc."""
    word = "tuned" if is_tuned else "default"
    part, (folder, file) = f"steps_{model}_{word}", workload.prepare(settings.work, model)
    common = (f"--folder={folder}", f"--examples={file}")
    ours = ("dft/padded", "sft/padded")

    def peer(name, environment, module, *arguments, **about):
        return Contender(
            name, settings.pythons.get(environment, ""), module, (*common, *arguments), **about
        )

    arguments = (f"--row_length={workload.LENGTH}", f"--cases={','.join(ours)}")
    contenders = [peer("ours", "ours", "ours", *arguments, cases=ours)]
    contenders.append(peer("trl", "torch", "trl_side", "--setting=best"))
    if is_tuned:
        contenders.append(peer("torch", "torch", "torch_loop", "--objective=dft", "--head=full"))
        contenders.append(
            peer("torch_trained", "torch", "torch_loop", "--objective=dft", "--head=trained")
        )
    else:
        contenders.append(peer("trl_as_installed", "torch", "trl_side", "--setting=default"))
    contenders.append(peer("tunix", "tunix", "tunix_side", "--objective=sft"))
    contenders.append(peer("tunix_dft", "tunix", "tunix_side", "--objective=dft", only_gate=True))
    absent = {c.name: "its environment could not be built" for c in contenders if not c.python}
    contenders = [contender for contender in contenders if contender.python]
    logs = settings.work / "logs" / part
    found = duel.run(
        contenders, tuned=is_tuned, rounds=settings.rounds, steps=settings.steps, logs=logs
    )
    found.failed |= absent
    objective_of = {(c.name, case): case.split("/")[0] for c in contenders for case in c.cases}
    objective_of |= {
        (c.name, "step"): "sft" if c.name == "tunix" else "dft"
        for c in contenders
        if c.name != "ours"
    }
    gate = gate_of(part, found, objective_of, {"trl_as_installed"})
    excluded = {}
    for row in gate:
        if row["verdict"] == "differs":
            loss, norm = row["loss_difference"], row["norm_difference"]
            reason = f"gate: loss differs by {loss:.2g}, gradient norm {norm:.2g}"
            excluded[row["contender"]] = reason
    if "tunix_dft" in excluded:
        excluded["tunix"] = excluded["tunix_dft"]
    outcome = results_of(part, _step_pairs(model, is_tuned), found, excluded)
    outcome.gate = gate
    return outcome


def _step_pairs(model: str, is_tuned: bool) -> list[Pair]:
    dft, sft, word = (
        ("ours", "dft/padded"),
        ("ours", "sft/padded"),
        "tuned" if is_tuned else "default",
    )
    pairs = [
        Pair(f"trl_{model}_{word}", ("trl", "step"), dft),
        Pair(
            f"tunix_{model}_{word}", ("tunix", "step"), sft, note="its own SFT loss against our SFT"
        ),
    ]
    if is_tuned:
        pairs.append(Pair(f"torch_{model}_tuned", ("torch", "step"), dft))
        pairs.append(Pair(f"torch_trained_{model}_tuned", ("torch_trained", "step"), dft))
        pairs.append(Pair(f"dft_over_sft_{model}", dft, sft))
    else:
        note = "bf16 autocast and gradient checkpointing against our float32"
        pairs.append(
            Pair(f"trl_as_installed_{model}", ("trl_as_installed", "step"), dft, note=note)
        )
    return pairs


def packing(settings: Settings) -> Outcome:
    """Useful tokens a second, packed and padded; and how full packed rows are."""
    folder, _ = workload.prepare(settings.work, "T")
    useful, contenders = {}, []
    layouts = {"packed": ("dft/packed",), "padded": ("dft/packed", "dft/dynamic", "dft/padded")}
    for (name, layout), examples in zip(
        layouts.items(), _eight_rows_and_eight_examples(), strict=True
    ):
        file = settings.work / f"examples_{name}.npz"
        examples.save(file)
        useful[name] = int((examples.lengths_N - 1).sum())
        arguments = (
            f"--folder={folder}",
            f"--examples={file}",
            "--row_length=2048",
            f"--cases={','.join(layout)}",
        )
        # The gate looks for "ours"; there the same eight examples are packed and padded.
        called = "ours" if name == "padded" else "ours_packed"
        contenders.append(Contender(called, settings.pythons["ours"], "ours", arguments, layout))
    logs = settings.work / "logs/packing"
    found = duel.run(contenders, tuned=False, rounds=settings.rounds, steps=1, logs=logs, warmup=2)
    note = (
        f"eight rows: {useful['packed']} useful tokens packed, {useful['padded']} padded;"
        " model T, default malloc"
    )
    scale, packed = useful["packed"] / useful["padded"], ("ours_packed", "dft/packed")
    pairs = [
        Pair("packing", ("ours", "dft/padded"), packed, scale, note),
        Pair("packing_dynamic", ("ours", "dft/dynamic"), packed, scale, note),
    ]
    for name in [name for name in found.facts if name[0] == "ours_packed"]:
        del found.facts[name]  # other examples: nothing to compare with
    gate = gate_of("packing", found, {("ours", case): "dft" for case in layouts["padded"]}, set())
    is_equal = all(row["verdict"] == "equal" for row in gate)
    excluded = {} if is_equal else {"ours": "gate: packed differs from padded"}
    outcome = results_of("packing", pairs, found, excluded)
    outcome.gate = gate
    outcome.results += _efficiencies(settings)
    return outcome


def _eight_rows_and_eight_examples() -> tuple[workload.Examples, workload.Examples]:
    """Of a step of 256 examples: those in eight of its packed rows, and eight of all lengths.

    A whole padded step is 256 rows of 2048. Eight rows take as long as any other eight; they differ
    in what is useful.
    """
    from dft_jax.data.packing import best_fit

    lengths = workload.math_lengths(256)
    rows = best_fit((lengths - 1).tolist(), 2048)
    # the last row is what was left
    spread = [rows[round(place)] for place in np.linspace(0, len(rows) - 2, 8)]
    quantiles = np.argsort(lengths)[(np.arange(8) * 32 + 16)]
    vocab_size = workload.SHAPES["T"].vocab_size
    packed, some = (lengths[np.array(which)] for which in (sum(spread, []), quantiles))
    return workload.random_examples(vocab_size, packed), workload.random_examples(vocab_size, some)


def _efficiencies(settings: Settings) -> list[dict]:
    results = []
    data, tokenizer = settings.data and settings.data / "gsm8k_train.jsonl", settings.tokenizer
    for name, arguments in (
        ("gsm8k", [f"--data={data}", f"--tokenizer={tokenizer}"]),
        ("math", []),
    ):
        target = TARGETS[f"efficiency_{name}"]
        if name == "gsm8k" and not (data and data.exists() and tokenizer and tokenizer.exists()):
            results.append(records.result(target, None, note="needs --data and --tokenizer"))
            continue
        found = child(settings, "efficiency", *arguments)
        note = (
            f"{found['steps']} steps, mean length {found['mean_length']:.0f};"
            f" {found['packed']:.4f} without the rows that fill a step up to an allowed count,"
            f" {found['bound']:.4f} with as few as the tokens fill"
        )
        results.append(records.result(target, found["efficiency"], note=note))
    return results


def generation(settings: Settings) -> Outcome:
    """Sampling with the large vocabulary; the gate is the share of equal tokens when both decode
    greedily.
    """
    folder, _ = workload.prepare(settings.work, "V")
    file = settings.work / "prompts.npz"
    workload.random_examples(workload.SHAPES["V"].vocab_size, np.full(16, 64)).save(file)
    common = (f"--folder={folder}", f"--examples={file}")
    contenders = [
        Contender("ours", settings.pythons["ours"], "generate_ours", common),
        Contender("transformers", settings.pythons.get("torch", ""), "generate_torch", common),
    ]
    if not contenders[1].python:
        return Outcome(
            [records.result(TARGETS["generation"], None, note="its environment could not be built")]
        )
    logs = settings.work / "logs/generation"
    found = duel.run(contenders, tuned=False, rounds=settings.rounds, steps=1, logs=logs, warmup=1)
    ours, theirs = (
        found.facts.get((name, "step"), {}).get("greedy") for name in ("ours", "transformers")
    )
    excluded, share = {}, None
    if ours and theirs:
        share = float((np.array(ours) == np.array(theirs)).mean())
        if share < 0.95:
            excluded["ours"] = f"gate: only {share:.3f} of the greedy tokens are equal"
    pairs = [
        Pair(
            "generation",
            ("transformers", "step"),
            ("ours", "step"),
            note="64 + 64 tokens; default malloc",
        )
    ]
    outcome = results_of("generation", pairs, found, excluded)
    verdict = "missing" if share is None else "differs" if excluded else "equal"
    outcome.gate = [
        {
            "part": "generation",
            "contender": "transformers",
            "equal_greedy_tokens": share,
            "verdict": verdict,
        }
    ]
    return outcome


def startup(settings: Settings) -> Outcome:
    """Time from the command to the first step's row in metrics.jsonl, with an empty and with a used
    cache.
    """
    folder, _ = workload.prepare(settings.work, "T")
    for file in (duel.ROOT / "dft_jax/assets/tiny").glob("tokenizer*"):
        shutil.copy(file, folder)
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    cache = settings.work / "cache"
    for number in range(settings.rounds):
        shutil.rmtree(cache, ignore_errors=True)
        for name in times:
            times[name].append(_time_to_first_step(settings, folder, cache))
        print(
            f"  round {number + 1}: cold {times['cold'][-1]:.1f} s, warm {times['warm'][-1]:.1f} s",
            flush=True,
        )
    return _ratio_outcome(
        "startup", "startup", times["warm"], times["cold"], "model T, configs/tiny.py"
    )


def _time_to_first_step(settings: Settings, folder: Path, cache: Path) -> float:
    workdir = settings.work / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    config = {
        "model.path": folder,
        "model.init": "checkpoint",
        "data.heldout": "",
        "train.steps": 1,
    }
    command = [
        settings.pythons["ours"],
        "-m",
        "dft_jax.main",
        "--config=configs/tiny.py",
        f"--workdir={workdir}",
    ]
    command += [f"--config.{name}={value}" for name, value in config.items()]
    used = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment = duel.environment(False, **used, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1")
    with open(settings.work / "startup.log", "w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=duel.ROOT, env=environment, stdout=log, stderr=log)
        metrics = workdir / "metrics.jsonl"
        try:
            while not (metrics.exists() and '"train/loss"' in metrics.read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended early; see {log.name}")
                time.sleep(0.02)
            seconds = time.perf_counter() - start
            process.wait()  # it saves and exports; what it compiles then is in the cache too
        finally:
            process.kill()
    return seconds


def compilation(settings: Settings) -> Outcome:
    """Compilations after the first step; compile time against the number of layers."""
    workdir = settings.work / "run_compilations"
    shutil.rmtree(workdir, ignore_errors=True)
    found = child(settings, "compilations", f"--workdir={workdir}")
    programs = ", ".join(f"{name} {n}" for name, n in found["programs"].items())
    sizes = " and ".join(map(str, found["row_counts"]))
    note = (
        f"50 steps of {sizes} rows, evaluation every ten; {found['before']} before. {programs}"
    ).strip()
    counted = records.result(TARGETS["compilations"], float(found["after_first_step"]), note=note)
    file = settings.work / "examples_compile.npz"
    workload.random_examples(8192, np.full(2, 64)).save(file)
    folders = {name: workload.prepare(settings.work, name)[0] for name in ("T", "T16")}
    times: dict[str, list[float]] = {name: [] for name in folders}
    for number in range(settings.rounds):
        for name, folder in folders.items():
            made = child(settings, "compile_step", f"--folder={folder}", f"--examples={file}")
            times[name].append(made["compile_s"])
        print(
            f"  round {number + 1}: {times['T'][-1]:.1f} s, 16 layers {times['T16'][-1]:.1f} s",
            flush=True,
        )
    outcome = _ratio_outcome(
        "compile", "compile_layers", times["T16"], times["T"], "first call less the second"
    )
    outcome.results.append(counted)
    return outcome


def _ratio_outcome(
    part: str, id: str, above: list[float], below: list[float], note: str
) -> Outcome:
    value, low, high = duel.ratio_interval(np.array(above), np.array(below))
    about = {
        "ours_step_s": float(np.median(above)),
        "peer_step_s": float(np.median(below)),
        "rounds": len(above),
    }
    names = {"startup": ("warm", "cold"), "compile": ("16 layers", "4 layers")}[part]
    about |= {"ours_is": names[0], "peer_is": names[1], "note": note}
    rounds = [
        {
            "part": part,
            "contender": "ours",
            "case": name,
            "round": number,
            "steps": 1,
            "wall_s": seconds,
        }
        for name, column in zip(names, (above, below), strict=True)
        for number, seconds in enumerate(column)
    ]
    return Outcome([records.result(TARGETS[id], value, (low, high), **about)], rounds)


def child(settings: Settings, module: str, *arguments: str) -> dict:
    """Runs a contender's module that measures by itself; its last line is JSON."""
    command = [
        settings.pythons["ours"],
        "-m",
        f"experiments.performance.contenders.{module}",
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=duel.ROOT, env=duel.environment(False), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
