"""How tests compile: they are compile-bound, and what makes programs fast takes most of their time.

LLVM's optimizations take two fifths, and the newer emitters of fusions, which go through MLIR, two
thirds of what is left: the step of the tiny model takes 8 s of a processor with them, 3 s with the
older ones. XLA's own passes are the same.
"""

_LEVEL = "--xla_backend_optimization_level"
# A jaxlib that no longer has one of them ends at once and names it.
_QUICK = (f"{_LEVEL}=0", "--xla_cpu_use_fusion_emitters=false")


def flags(devices: int, given: str = "") -> str:
    """XLA_FLAGS of a process with so many simulated devices, beside those that are given.

    Whoever gives a level gets programs as users have them, but for that level; .ci/run does, for
    some tests.
    """
    found = [given, f"--xla_force_host_platform_device_count={devices}"]
    if _LEVEL not in given:
        found.extend(_QUICK)
    return " ".join(found)
