"""What the tests take from JAX's private modules: all of it is here, each with what happens where
it is gone.

tests/test_structure.py has the list of files that may name these modules.
"""

import gc
import inspect
import pathlib
from types import ModuleType
from typing import Any

import jax

CUDNN = "jax._src.cudnn"

# Linux allows a process 65,530 memory maps (vm.max_map_count); XLA then ends with a segmentation
# fault, or hangs. A program on a CPU has some dozens.
MOST_MAPS = 20_000

_programs_of_several_devices: dict[Any, Any] = {}


def cudnn_attention() -> ModuleType | None:
    """What `models.attention_backends.cudnn` calls; None where it is gone, when that backend is
    never chosen.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo
    except ImportError:
        return None
    return fused_attention_stablehlo


def compiler() -> ModuleType | None:
    """Where JAX reads and writes the persistent cache of compiled programs."""
    try:
        from jax._src import compiler
    except ImportError:
        return None
    return compiler


def keep_programs_of_several_devices_in_memory() -> bool:
    """Programs for several CPU devices deadlock when they are read back from disk (see
    cli.keep_compilations).

    So the persistent cache gets only programs for one device; equal programs for several devices
    are compiled once in this process. The functions replaced are private: their arguments are found
    by name, whatever others there are. Where they are not as expected nothing is replaced, and no
    program is cached, which is slow but right.

    Returns:
      Whether the functions were replaced.
    """
    module = compiler()
    read = getattr(module, "_cache_read", lambda: None)
    write = getattr(module, "_cache_write", lambda: None)
    read_arguments, write_arguments = inspect.signature(read), inspect.signature(write)
    are_as_expected = {"cache_key", "executable_devices"} <= read_arguments.parameters.keys()
    are_as_expected &= {"cache_key", "executable"} <= write_arguments.parameters.keys()
    if not are_as_expected:
        jax.config.update("jax_enable_compilation_cache", False)
        return False

    in_memory = _programs_of_several_devices

    def read_of_one_device(*args, **kwargs):
        arguments = read_arguments.bind(*args, **kwargs).arguments
        if len(arguments["executable_devices"]) == 1:
            return read(*args, **kwargs)
        # a kept program would call the functions of an earlier one
        if arguments.get("host_callbacks"):
            return None, None
        return in_memory.get(arguments["cache_key"]), 1

    def write_of_one_device(*args, **kwargs):
        arguments = write_arguments.bind(*args, **kwargs).arguments
        # What is compiled for a device that is not here is no program that could run.
        if not hasattr(arguments["executable"], "local_devices"):
            return
        if len(arguments["executable"].local_devices()) == 1:
            write(*args, **kwargs)
        elif not arguments.get("host_callbacks"):
            in_memory[arguments["cache_key"]] = arguments["executable"]

    module._cache_read, module._cache_write = read_of_one_device, write_of_one_device
    return True


def memory_maps() -> int:
    """Of this process; 0 on systems that do not say, which have no such limit."""
    file = pathlib.Path("/proc/self/maps")
    return file.read_bytes().count(b"\n") if file.exists() else 0


def forget_programs(most_maps: int = MOST_MAPS) -> None:
    """Lets go of compiled programs that nobody holds, where they have that many maps."""
    if memory_maps() > most_maps:
        _programs_of_several_devices.clear()
        jax.clear_caches()
        gc.collect()
