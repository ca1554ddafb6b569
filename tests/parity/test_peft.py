"""Live against PEFT: it loads adapters that are written here, gives our logits with them, and saves
them again as they were.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft_library = pytest.importorskip("peft")
import transformers
from safetensors.numpy import load_file

from dft_jax.models.hf import peft
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.lora import MODULES, Lora
from dft_jax.models.model import build
from dft_jax.runtime import files
from tests.conftest import GOLDEN
from tests.models.test_lora import logits, one_row, random_adapters

# PEFT asks transformers for what that is going to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
LORAS = {
    "llama": Lora(4, 7.0, False, MODULES),
    "qwen2_tied": Lora(3, 2.5, True, MODULES),
    "llama_attention_bias": Lora(2, 16.0, False, ("q", "v", "o", "down")),
    "mistral": Lora(8, 8.0, False, MODULES[:4]),
    "qwen3": Lora(1, 1.0, False, MODULES[4:]),
    "olmo2": Lora(4, 7.0, False, MODULES),
    "smollm3_window": Lora(4, 7.0, False, MODULES),
}


@pytest.mark.parametrize("case", LORAS)
def test_peft_reads_what_is_written_here(case, mesh8, tmp_path):
    base, lora = GOLDEN / case, LORAS[case]
    model = build(read_config(base), mesh8, lora=lora)
    params = load_params(Checkpoint(base), model)
    adapters = random_adapters(model, seed=3)
    ours, again = tmp_path / "ours", tmp_path / "again"
    ours.mkdir()
    about = {"path": str(base), "revision": "main", "sha256": "5a"}
    peft.write_adapter(peft.pairs_of(adapters, model), lora, about, ours)

    tokens_BL = np.load(base / "logits.npz")["token_ids"][:1, :24]
    # Rows for every device.
    found_BLV = logits(model, params, one_row(np.tile(tokens_BL, (4, 1))), adapters)[:1]
    opened = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    loaded = peft_library.PeftModel.from_pretrained(opened, str(ours)).eval()
    with torch.no_grad():
        expected_BLV = loaded(torch.tensor(tokens_BL).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)

    loaded.save_pretrained(again)
    one, other = (load_file(folder / peft.TENSORS_NAME) for folder in (ours, again))
    assert one.keys() == other.keys()
    jax.tree.map(np.testing.assert_array_equal, one, other)
    written, held = (files.read_json(folder / peft.CONFIG_NAME) for folder in (ours, again))
    for key, value in written.items():
        saved = held[key]
        if key == "target_modules":
            saved = sorted(saved)
        assert saved == value, key
    peft.check(peft.read_adapter(again), model)
