"""adapter_config.json of PEFT, key by key: each is used, checked, known not to matter, or refused.

As huggingface/peft at 5d602fd reads it (tuners/lora/config.py, tuners/tuners_utils.py).
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dft_jax.models.hf.config_reader import ConfigReader
from dft_jax.models.lora import MODULES, SUFFIX, scale_of
from dft_jax.runtime import errors
from dft_jax.runtime.files import read_json

MERGE = "merge it with PEFT (merge_and_unload), and load the result"
# Keys that do not change what an adapter's tensors compute.
_WITHOUT_EFFECT = frozenset(
    """
    auto_mapping corda_config ensure_weight_tying eva_config inference_mode megatron_core
    peft_version qalora_group_size runtime_config
    """.split()
)
# Keys that make it another computation, or that train more than matrices, and what they are.
_REFUSED = {
    "alora_invocation_tokens": "an adapter that some tokens switch on",
    "arrow_config": "several adapters at once",
    "kasa_config": "KaSA",
    "layer_replication": "layers that are repeated",
    "loftq_config": "a quantised base",
    "lora_bias": "biases of the adapter",
    "megatron_config": "Megatron's parallel layers",
    "modules_to_save": "whole modules that were trained, such as embeddings",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "parameters that are no linear layer's",
    "trainable_token_indices": "rows of the embedding that were trained",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}
# Ways to begin after which the base is not the checkpoint any more, by how they start.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva")
# What an absent `target_modules` means to PEFT, of the families here that it knows.
_UNSET_TARGETS = ("q_proj", "v_proj")
# Of Phi-3 some are one module; no other family has such.
_ALL_LINEAR = (*(name + SUFFIX for name in MODULES), "qkv_proj", "gate_up_proj")

Names = str | tuple[str, ...]  # an expression for a whole name; or names, or what they end in


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says. A module is named as in "model.layers.0.self_attn.q_proj"."""

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    base: str  # where the base was found: a folder or hub id; empty where it names none
    revision: str
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: Names
    excluded: Names
    layers: tuple[int, ...] | None  # those that are adapted, if not all
    layers_pattern: tuple[str, ...]  # what precedes the number of a layer; any name where empty

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank of the module, or alpha / √rank."""
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return scale_of(alpha, self.rank_of(module), self.rslora)

    def adapts(self, module: str) -> bool:
        """Whether `target_modules` and its like name the module."""
        if _names(self.excluded, module):
            return False
        if isinstance(self.targets, str) or module in self.targets:
            return _names(self.targets, module)
        return _names(self.targets, module) and self._adapts_layer(module)

    def _adapts_layer(self, module: str) -> bool:
        if self.layers is None:
            return True
        # PEFT takes the first number that follows a name.
        for name in self.layers_pattern or (r"[^.]*",):
            found = re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module)
            if found:
                return int(found[1]) in self.layers
        return False


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that matches the end of a module's name."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _names(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_adapter_config(file: Path) -> AdapterConfig:
    """Reads adapter_config.json.

    Raises:
      UserError: each key that is wrong, not supported or unknown, with a remedy.
    """
    reader = _Reader(read_json(file), str(file))
    reader.expect("peft_type", "LORA", default=None)
    reader.expect("task_type", "CAUSAL_LM", None)
    reader.expect("bias", "none")
    reader.expect("fan_in_fan_out", False)
    reader.beginning()
    found = AdapterConfig(
        # PEFT's own defaults.
        rank=reader.size("r", 8),
        alpha=reader.positive("lora_alpha", 8.0),
        rslora=reader.take("use_rslora", bool, False),
        dropout=reader.take("lora_dropout", float, 0.0),
        base=reader.take("base_model_name_or_path", str, ""),
        revision=reader.take("revision", str, "") or "main",
        rank_pattern=reader.pattern("rank_pattern", int),
        alpha_pattern=reader.pattern("alpha_pattern", float),
        targets=reader.names("target_modules", _UNSET_TARGETS),
        excluded=reader.names("exclude_modules", ()),
        layers=reader.layers("layers_to_transform"),
        layers_pattern=reader.expressions("layers_pattern"),
    )
    reader.refuse_rest()
    errors.raise_if_any(reader.problems)
    return found


class _Reader(ConfigReader):
    """Reads adapter_config.json so that no key passes unseen."""

    def __init__(self, raw: dict[str, Any], place: str):
        super().__init__(raw, place)
        # What config.json may have beside its own keys is unknown here.
        self._left = set(raw) - _WITHOUT_EFFECT

    def beginning(self) -> None:
        """How the adapter began does not matter, unless that changed its base."""
        key = "init_lora_weights"
        value = self.take_any(key, True)
        if isinstance(value, str) and value.lower().startswith(_CHANGES_BASE):
            what = f"{key}={value!r} changes the base, which is then not the checkpoint"
            self.problem(f"{what}: {MERGE}")
        elif value not in _BEGINNINGS:
            self.problem(f"{key}={value!r} is not known: only {', '.join(map(repr, _BEGINNINGS))}")

    def take_any(self, key: str, default: Any) -> Any:
        """The value of a key of any type; `default` where it is absent or null."""
        self._left.discard(key)
        value = self.raw.get(key)
        return default if value is None else value

    def pattern(self, key: str, kind: type) -> dict[str, Any]:
        """Numbers above zero by expression, in the file's order, of which the first counts."""
        found = {}
        for name, value in self.take(key, dict, {}).items():
            reader = ConfigReader({name: value}, f"{self.place}: {key}")
            found[name] = reader.size(name) if kind is int else reader.positive(name)
            self.problems += reader.problems
            self._check_expression(key, name)
        return found

    def names(self, key: str, default: Names) -> Names:
        """Names of modules; a string is an expression, or "all-linear"."""
        value = self.take_any(key, default)
        if isinstance(value, str):
            if value.lower() == "all-linear":
                return _ALL_LINEAR
            self._check_expression(key, value)
            return value
        return self._strings(key, value)

    def expressions(self, key: str) -> tuple[str, ...]:
        """One expression, or several."""
        value = self.take_any(key, ())
        if isinstance(value, str):
            value = [value] if value else []
        found = self._strings(key, value)
        for name in found:
            self._check_expression(key, name)
        return found

    def _strings(self, key: str, value: Any) -> tuple[str, ...]:
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return tuple(value)
        self.problem(f"{key}={value!r} should be names, or an expression")
        return ()

    def _check_expression(self, key: str, text: str) -> None:
        try:
            re.compile(text)
        except re.error as error:
            self.problem(f"{key}: {text!r} is no regular expression ({error}); correct it")

    def layers(self, key: str) -> tuple[int, ...] | None:
        """Numbers of layers, or one; None for all."""
        value = self.take_any(key, [])
        if type(value) is int:
            value = [value]
        if not isinstance(value, list) or any(type(number) is not int for number in value):
            self.problem(f"{key}={value!r} should be numbers of layers")
            return None
        return tuple(value) or None

    def refuse_rest(self) -> None:
        """Each key that is left is a problem, unless its value says that it is not used."""
        for key in sorted(self._left):
            value = self.raw[key]
            if value is None or value is False or value in ({}, [], ""):
                continue
            if key in _REFUSED:
                self.problem(f"{key}={value!r} ({_REFUSED[key]}) is not supported: {MERGE}")
            else:
                self.problem(
                    f"{key}={value!r} is not a known key of a LoRA adapter;"
                    " remove it if it has no effect"
                )
