"""SIGKILL and SIGTERM aimed at phases of a run, time and again, which must end as if unhurt."""

import pathlib
import random
from collections.abc import Iterator

from tests.faults import images, launch, state
from tests.faults.launch import EVAL_EVERY, SAVE_EVERY, STEPS, Fault

AIMS = ("save", "commit", "whole", "step", "compile", "evaluate", "export")
TERM_PHASES = ("compile", "step", "evaluate", "save", "export")
UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # where a compilation is what is aimed at
_PER_CHAIN = 5
_TERM_STEPS = 24
_TENSORS = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.1.mlp.up_proj.weight",
    "rename",
)


def _fault(aim: str, action: str, newest: int, steps: int, chance: random.Random) -> Fault | None:
    """A fault at a phase that a run resumed from `newest` still has before it, None without one."""
    saves = [step for step in range(newest + 1, steps + 1) if step % SAVE_EVERY == 0]
    if aim in ("save", "commit", "whole"):
        # A save of the tiny run takes some 0.2 s: the delay spreads the hits over it.
        return (
            Fault(f"{aim} {chance.choice(saves[:2])}", action, chance.uniform(0, 0.15))
            if saves
            else None
        )
    if aim == "step":
        return (
            Fault(f"step {chance.randint(newest + 1, min(newest + 3, steps))}", action)
            if newest < steps
            else None
        )
    if aim == "compile":
        return (
            Fault(f"step {newest + 1}", action, chance.uniform(0, 1.0)) if newest < steps else None
        )
    if aim == "evaluate":
        due = [step for step in range(newest + 1, steps + 1) if step % EVAL_EVERY == 0]
        return Fault(f"evaluate {due[0]}", action, chance.uniform(0, 0.1)) if due else None
    if action == "KILL":
        return Fault(f"export {chance.choice(_TENSORS)}", action, chance.uniform(0, 0.02))
    # a signal near the end comes when all is done
    return Fault(f"export {chance.choice(_TENSORS[:2])}", action)


def _newest(workdir: pathlib.Path) -> int:
    return max(state.steps(workdir), default=0)


def _in_flight(phases: list[str]) -> bool:
    """Whether the launch that these phases are of ended while a checkpoint was being saved."""
    saves = [phase.split()[1] for phase in phases if phase.startswith("save ")]
    return bool(saves) and f"whole {saves[-1]}" not in phases


def kill_chain(
    folder: pathlib.Path,
    wanted: dict,
    aims: list[str],
    seed: int,
    kind: str = "kill",
    arguments: tuple[str, ...] = (),
) -> Iterator[dict]:
    """One run, killed at each aim in turn, then run to its end and compared with `wanted`."""
    chance, workdir, hits = random.Random(seed), folder / f"kill{seed}", []
    for aim in aims:
        fault = _fault(aim, "KILL", _newest(workdir), STEPS, chance) or _fault(
            "export", "KILL", STEPS, STEPS, chance
        )
        seen = len(launch.phases(workdir))
        environment = UNCACHED if aim == "compile" else None
        code = launch.run(workdir, fault, arguments=arguments, environment=environment)
        landed = code == -9
        in_flight = landed and _in_flight(launch.phases(workdir)[seen:])
        hits.append(
            {
                "aim": fault.phase.split()[0] if aim != "compile" else aim,
                "landed": landed,
                "save": in_flight,
            }
        )
    code = launch.run(workdir, arguments=arguments)
    found = state.summary(workdir) if code == 0 else {}
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    detail = f"exit {code}, differs in {wrong}" if code or wrong else ""
    for hit in hits:
        yield {
            "kind": kind,
            "case": hit["aim"],
            "save in flight": hit["save"],
            "landed": hit["landed"],
        } | {
            "ok": not detail,
            "detail": detail,
        }


def image_chain(folder: pathlib.Path, aims: list[str], seed: int) -> Iterator[dict]:
    """The same of a run on rows with images, and of the uninterrupted one that it is to equal."""
    folder = folder / f"images{seed}"
    arguments = images.arguments(folder)
    whole = folder / "whole"
    assert launch.run(whole, arguments=arguments) == 0, launch.log(whole)[-3000:]
    wanted = state.summary(whole)
    yield from kill_chain(folder, wanted, aims, seed, "kill, images", arguments)


# Of this rate the best step by mean p is 1, then 2, then 5, at which nothing else would be saved.
_BEST = (
    "--config.checkpoint.best=heldout/mean_p",
    "--config.checkpoint.keep=1",
    "--config.eval.every=1",
    "--config.optimizer.learning_rate=0.1",
)
# Before, in and after the saves that make another step the best.
BEST_PHASES = ("commit 1", "whole 1", "evaluate 2", "whole 2", "save 5", "commit 5", "whole 5")
BEST_PHASES += ("evaluate 6", "whole 6", "commit 8", "evaluate 8")


def best_chain(folder: pathlib.Path, phases: tuple[str, ...] = BEST_PHASES) -> Iterator[dict]:
    """One run whose best step is kept, killed at each phase in turn: the same steps in the end."""
    assert launch.run(folder / "best", arguments=_BEST) == 0, launch.log(folder / "best")[-3000:]
    wanted = state.summary(folder / "best")
    assert wanted["steps"] == [5, 8], wanted["steps"]
    wanted["best"] = state.state_sha256(folder / "best", 5)
    workdir, hits = folder / "best.killed", []
    for phase in phases:
        hits.append((phase, launch.run(workdir, Fault(phase, "KILL"), arguments=_BEST) == -9))
    code = launch.run(workdir, arguments=_BEST)
    found = state.summary(workdir) if code == 0 else {}
    if 5 in found.get("steps", []):
        found["best"] = state.state_sha256(workdir, 5)
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    detail = f"exit {code}, differs in {wrong}" if code or wrong else ""
    for phase, landed in hits:
        yield {
            "kind": "kill, best kept",
            "case": phase.split()[0],
            "landed": landed,
            "ok": not detail,
            "detail": detail,
        }


# Each phase of a save, a step, the evaluations and the export of adapters; nothing else is in their
# checkpoints, and the base is read again at each start.
LORA_PHASES = ("evaluate 0", "step 1", "save 2", "commit 2", "whole 2", "step 3", "save 4")
LORA_PHASES += ("commit 4", "evaluate 4", "whole 4", "save 6", "commit 6", "whole 6", "step 8")
LORA_PHASES += ("save 8", "commit 8", "evaluate 8", "whole 8", "export *", "export rename")
_ADAPTER = "export/adapter/adapter_model.safetensors"


def lora_chain(
    folder: pathlib.Path, whole: pathlib.Path, phases: tuple[str, ...] = LORA_PHASES
) -> Iterator[dict]:
    """One run with adapters on what `whole` has exported, killed at each phase in turn: the same
    adapters, moments, metrics and exports in the end.
    """
    arguments = (
        f"--config.model.path={whole / 'export'}",
        "--config.model.init=checkpoint",
        "--config.lora.rank=4",
        "--config.optimizer.learning_rate=1e-3",
    )

    def summary(workdir: pathlib.Path) -> dict:
        return state.summary(workdir) | {"adapter": state.file_sha256(workdir / _ADAPTER)}

    assert launch.run(folder / "lora", arguments=arguments) == 0, launch.log(folder / "lora")
    wanted = summary(folder / "lora")
    workdir, hits = folder / "lora.killed", []
    for phase in phases:
        seen = len(launch.phases(workdir))
        landed = launch.run(workdir, Fault(phase, "KILL"), arguments=arguments) == -9
        in_flight = landed and _in_flight(launch.phases(workdir)[seen:])
        hits.append({"case": phase.split()[0], "landed": landed, "save in flight": in_flight})
    code = launch.run(workdir, arguments=arguments)
    found = summary(workdir) if code == 0 else {}
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    detail = f"exit {code}, differs in {wrong}" if code or wrong else ""
    for hit in hits:
        yield {"kind": "kill, adapters", "ok": not detail, "detail": detail} | hit


def kill_plan(count: int, seed: int) -> list[list[str]]:
    """Aims for `count` kills, more than half of them at the phases of a save, cut into chains."""
    weights = {
        "save": 4,
        "commit": 3,
        "whole": 1,
        "step": 1,
        "compile": 2,
        "evaluate": 1.5,
        "export": 1.5,
    }
    chance = random.Random(seed)
    aims = [aim for aim in AIMS for _ in range(round(count * weights[aim] / sum(weights.values())))]
    aims += chance.choices(AIMS, k=count - len(aims))
    chance.shuffle(aims)
    # Exports come last in a chain: they need the run to be at its end.
    chains = [aims[i : i + _PER_CHAIN] for i in range(0, count, _PER_CHAIN)]
    return [sorted(chain, key=lambda aim: aim == "export") for chain in chains]


def term_plan(times: int) -> list[list[str]]:
    """Every phase so many times, twice in a chain."""
    pairs = [2] * (times // 2) + [1] * (times % 2)
    return [sorted(TERM_PHASES * n, key=lambda phase: phase == "export") for n in pairs]


def term_arguments() -> tuple[str, ...]:
    return (f"--config.train.steps={_TERM_STEPS}",)


def _launch(
    workdir: pathlib.Path, fault: Fault | None, processes: int, victim: int, **options
) -> list[int]:
    if processes == 1:
        return [launch.run(workdir, fault, **options)]
    options.pop("environment", None)
    faults = {victim: fault} if fault else {}
    return [
        launch.wait(process) for process in launch.start_many(workdir, processes, faults, **options)
    ]


def uninterrupted(folder: pathlib.Path, processes: int) -> dict:
    """What the runs of `term_chain` must come to."""
    workdir = folder / f"whole{processes}"
    codes = _launch(workdir, None, processes, 0, arguments=term_arguments())
    assert codes == [0] * processes, launch.log(workdir)[-3000:]
    return state.summary(workdir)


def term_chain(
    folder: pathlib.Path, wanted: dict, phases: list[str], processes: int, seed: int
) -> Iterator[dict]:
    """One run, asked to stop at each phase in turn by SIGTERM or SIGINT to one of its processes."""
    chance, workdir = random.Random(seed), folder / f"term{processes}.{seed}"
    for number, phase in enumerate(phases):
        action, newest = chance.choice(["TERM", "TERM", "INT"]), _newest(workdir)
        fault = _fault(phase, action, newest, _TERM_STEPS, chance)
        if fault is None:  # the run is at its end: another one begins
            workdir = folder / f"term{processes}.{seed}.{number}"
            newest = 0
            fault = _fault(phase, action, newest, _TERM_STEPS, chance)
        seen = len(launch.phases(workdir))
        options = {"environment": UNCACHED} if phase == "compile" and processes == 1 else {}
        victim = chance.randrange(processes)
        codes = _launch(workdir, fault, processes, victim, arguments=term_arguments(), **options)
        yield {"kind": f"{action} on {processes}", "case": phase} | _judge(
            workdir, codes, newest, seen
        )
    codes = _launch(workdir, None, processes, 0, arguments=term_arguments())
    found = state.summary(workdir) if not any(codes) else {}
    wrong = [name for name in wanted if name != "steps" and found.get(name) != wanted[name]]
    detail = f"exit {codes}, differs in {wrong}" if wrong or any(codes) else ""
    yield {
        "kind": f"after SIGTERMs, on {processes}",
        "case": "same end",
        "ok": not detail,
        "detail": detail,
    }


def _judge(workdir: pathlib.Path, codes: list[int], newest: int, seen: int) -> dict:
    """All processes exit with 42; the checkpoint is that of the last step begun, or nearly.

    One process may begin one more step, several two (they agree a step late, and the other may
    begin the one that the signal came in after it came); and one more before the signal arrives,
    since steps take no longer here than threads wait for each other.
    """
    phases = launch.phases(workdir)[seen:]
    begun = [int(phase.split()[1]) for phase in phases if phase.startswith("step ")]
    after = (
        phases[phases.index(next(p for p in phases if p.startswith(launch.HURT))) :]
        if _was_hurt(phases)
        else []
    )
    late = len({phase for phase in after if phase.startswith("step ")})
    saved = _newest(workdir)
    problems = []
    if codes != [42] * len(codes):
        problems.append(f"exit codes {codes}")
    if saved != max(begun, default=newest):
        problems.append(f"step {saved} saved, {max(begun, default=newest)} begun")
    if late > len(codes) + 1:
        problems.append(f"{late} steps begun after the signal")
    return {
        "landed": _was_hurt(phases),
        "ok": not problems,
        "detail": "; ".join(problems),
        "late steps": late,
    }


def _was_hurt(phases: list[str]) -> bool:
    return any(phase.startswith(launch.HURT) for phase in phases)
