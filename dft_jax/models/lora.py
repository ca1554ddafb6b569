"""LoRA (arXiv 2106.09685): y = W x + s · B (A x), where A and B are trained and W is frozen.

Adapters are a tree of their own, beside the parameters: at the place of a kernel W it has `a`
[rank, *inputs] and `b` [*outputs, rank], stacked over layers as the kernel is.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from dft_jax.runtime import options
from dft_jax.runtime.options import ABOVE_0, AT_LEAST_0, Config, Option

# Modules of a layer that may have an adapter, as its tree has them. In a checkpoint they are called
# q_proj, …, and so they are in a config.
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
SUFFIX = "_proj"
ALL = "all-linear"
GROUPS = {ALL: MODULES, "attention": MODULES[:4], "mlp": MODULES[4:]}
# config.lora
SECTION = {
    "rank": Option(
        0, "of the adapters that are trained in place of the model; 0: all is trained", AT_LEAST_0
    ),
    "alpha": Option(16.0, "updates are multiplied by alpha / rank", ABOVE_0),
    "rslora": Option(False, "by alpha / sqrt(rank) instead; some servers do not know it"),
    "targets": Option(
        ALL,
        f"what has adapters: {', '.join(GROUPS)}, or some of"
        f" {','.join(name + SUFFIX for name in MODULES)}, separated by commas",
    ),
    "adapter": Option(
        "", "PEFT folder of the adapter to begin with; its rank, alpha and targets then hold"
    ),
}


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which modules have an adapter, of which rank, and what its output is multiplied by."""

    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]  # some of MODULES, in that order

    @property
    def scale(self) -> float:
        """s = alpha / rank, or alpha / √rank (rsLoRA, arXiv 2312.03732)."""
        return scale_of(self.alpha, self.rank, self.rslora)


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """What the output of an adapter is multiplied by."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def parse_targets(text: str) -> tuple[str, ...]:
    """The modules that `lora.targets` names, in the order of MODULES.

    Raises:
      ValueError: a name that is none of theirs; the message says which, and the known ones.

    >>> parse_targets("v_proj,q_proj")
    ('q', 'v')
    """
    if text in GROUPS:
        return GROUPS[text]
    known = {name + SUFFIX: name for name in MODULES}
    chosen = set()
    for given in text.split(","):
        if given.strip() not in known:
            what = f"{given.strip()!r} is unknown"
            raise ValueError(options.unknown(what, given.strip(), [*GROUPS, *known]))
        chosen.add(known[given.strip()])
    return tuple(name for name in MODULES if name in chosen)


def problems(given: dict[str, Any], looked_from: str) -> list[str]:
    """What is wrong with `config.lora`; `given` are values by their key in SECTION."""
    found = []
    try:
        parse_targets(given.get("targets", ALL))
    except ValueError as error:
        found.append(f"config.lora.targets: {error}")
    adapter = given.get("adapter")
    if adapter and not Path(adapter).is_dir():
        what = f"config.lora.adapter={adapter!r}: no such folder (looked from {looked_from})"
        found.append(f"{what}; give a folder that PEFT or an export has written")
    return found


def is_adapted(section: Config | None) -> bool:
    """Whether a run with this section `lora` trains adapters, or all of the model.

    A run from before the section was there has none.
    """
    return section is not None and bool(section.rank or section.adapter)


def of_config(section: Config | None) -> Lora | None:
    """What the section `lora` of a config asks for, but for `lora.adapter`; None for rank 0."""
    if section is None or not section.rank:
        return None
    return Lora(section.rank, section.alpha, section.rslora, parse_targets(section.targets))
