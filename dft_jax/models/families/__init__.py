"""One file per architecture family: `HF_MODEL_TYPE`, and `read(reader)` from its config.json to a
DecoderSpec.

A new file here is found by itself; the tests find its golden checkpoint under tests/golden/ the
same way.
"""

import importlib
import pkgutil

FAMILIES = {
    module.HF_MODEL_TYPE: module
    for module in (
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    )
}
