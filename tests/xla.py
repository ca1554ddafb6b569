"""How tests compile: they are compile-bound, and what makes programs fast takes most of their time.

LLVM's optimizations take two fifths, and the newer emitters of fusions, which go through MLIR, most
of what is left: the step of the tiny model takes 8 s of a processor with them, 3 s with the older
ones. XLA's own passes are the same.
"""

import importlib.metadata

_LEVEL = "--xla_backend_optimization_level"
_OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def flags(devices: int, given: str = "") -> str:
    """XLA_FLAGS of a process with so many simulated devices, beside those that are given.

    Whoever gives a level gets programs as users have them, but for that level; .ci/run does, for
    some tests.
    """
    found = [given, f"--xla_force_host_platform_device_count={devices}"]
    if _LEVEL not in given:
        found.append(f"{_LEVEL}=0")
        if _has_older_emitters(importlib.metadata.version("jaxlib")):
            found.append(_OLDER_EMITTERS)
    return " ".join(found)


def _has_older_emitters(jaxlib: str) -> bool:
    """Whether this version has both emitters: 0.10 does; 0.11 and 0.12 end a process with the flag."""
    major, minor = map(int, jaxlib.split(".")[:2])
    return (major, minor) < (0, 11)
