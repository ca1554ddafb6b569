"""How tests compile: they are compile-bound, and what LLVM does to make programs fast takes two fifths
of their time. XLA's own passes are the same.
"""

_LEVEL = "--xla_backend_optimization_level"


def flags(devices: int, given: str = "") -> str:
    """XLA_FLAGS of a process with so many simulated devices, beside those that are given.

    Whoever gives a level gets it; .ci/run does, for some tests.
    """
    # Not the older emitters of fusions (--xla_cpu_use_fusion_emitters=false), though they compile a
    # fifth faster: jaxlib 0.10 makes wrong gradients of experts with them, and 0.11 has none.
    found = [given, f"--xla_force_host_platform_device_count={devices}"]
    if _LEVEL not in given:
        found.append(f"{_LEVEL}=0")
    return " ".join(found)
