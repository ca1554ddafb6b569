"""What is trained of a model: adapters, by the section `lora` of a config, or parts of one with
images; and what is said of it.
"""

import dataclasses
from pathlib import Path
from typing import Any

from dft_jax.lm.checkpoint import require_base
from dft_jax.models import lora as lora_lib
from dft_jax.models.hf import peft
from dft_jax.models.hf.safetensors import weights_dtype
from dft_jax.models.hf.tensors import adaptable_tensors
from dft_jax.models.lora import Lora
from dft_jax.models.model import Model, parameter_count, with_lora, with_tower
from dft_jax.models.parts import TEXT
from dft_jax.runtime import errors, processes
from dft_jax.runtime.options import Config, unknown

# Beyond these a run is warned: LoRA bears large batches less well than full fine-tuning does, and
# wants about ten times its learning rate ("LoRA Without Regret", Thinking Machines, 2025).
_LARGE_BATCH, _LOW_RATE = 64, 3e-5
# Of the mean p of the tokens that end an answer: below, a base has not seen them.
_UNKNOWN_END = 1e-4


def with_adapters(config: Config, model: Model) -> Model:
    """The model with the adapters that a run's config asks for; as it is where it asks for none.

    Raises:
      UserError: adapters that do not fit the model, or an adapter that cannot be trained further.
    """
    lora = lora_for(config.get("lora"), model)
    if lora is None:
        return model
    if config.model.init == "random":
        what = f"config.lora.rank={lora.rank} with config.model.init='random'"
        raise errors.UserError(f"{what}: the random base would be in no file; give a checkpoint")
    return with_lora(model, lora)


def with_images(config: Config, model: Model, have_images: bool) -> Model:
    """The model with its tower, where examples have images, and what `train.parts` trains.

    Raises:
      UserError: parts of a tower that sees nothing, or beside adapters.
    """
    # Runs that are older than the key have none.
    parts: Any = config.train.get("parts", TEXT)
    if have_images:
        if parts != TEXT and model.lora is not None:
            raise errors.UserError(
                f"config.train.parts={parts!r} has no effect with adapters, which are those of the"
                " text (lora.rank); leave one of them out"
            )
        return with_tower(model, parts)
    if parts != TEXT:
        raise errors.UserError(
            f"config.train.parts={parts!r}: no row has an image, so nothing would train a tower;"
            f" give rows with images, or train.parts={TEXT!r}"
        )
    return model


def is_adapted(config: Config) -> bool:
    """Whether a run trains adapters, and not all of its model."""
    return lora_lib.is_adapted(config.get("lora"))


def fingerprint(config: Config) -> dict[str, str]:
    """Of the adapter that a run begins with; empty of one that begins with none."""
    if not is_adapted(config) or not config.lora.adapter:
        return {}
    return {"adapter_sha256": peft.digest(Path(config.lora.adapter))}


def fingerprint_of_base(config: Config, source: Path) -> dict[str, str]:
    """Of what a run's adapters are trained on, whose weights are hashed; empty of a run without.

    The base is in no checkpoint: whoever resumes or opens the run reads it again. All processes of
    a job call this.

    Raises:
      UserError: `lora.adapter` was trained on another base.
    """
    if not is_adapted(config):
        return {}
    what, trained_on = "config.lora", ""
    if config.lora.adapter:
        what = f"config.lora.adapter={config.lora.adapter!r}"
        trained_on = peft.read_adapter(Path(config.lora.adapter)).base_sha256
    return {"base_sha256": require_base(what, trained_on, source)}


def lora_for(section: Config | None, model: Model) -> Lora | None:
    """What `config.lora` comes to on a model; None where all of it is trained.

    Raises:
      UserError: a rank or targets that do not fit the model, or an adapter folder that does not
      fit it or the other keys.
    """
    lora = lora_lib.of_config(section)
    if lora is not None and section.targets == lora_lib.ALL and model.config.experts is not None:
        # As PEFT has it: to transformers an expert's matrix is no linear module.
        lora = dataclasses.replace(lora, targets=lora_lib.GROUPS["attention"])
    if section is not None and section.adapter:
        adapter = peft.read_adapter(Path(section.adapter))
        peft.check(adapter, model)
        lora = peft.as_lora(adapter, model)
        errors.raise_if_any(_contradictions(section, lora))
    if lora is not None:
        errors.raise_if_any(_misfits(lora, model))
    return lora


def refuse_idle_balance(config: Config, model: Model) -> None:
    """UserError where `train.balance_weight` would balance nothing."""
    # Runs that are older than the key have none.
    weight = config.train.get("balance_weight", 0.0)
    what = f"config.train.balance_weight={weight}"
    if weight and model.config.experts is None:
        raise errors.UserError(f"{what}: this model has no experts to balance; use 0")
    if weight and model.lora is not None:
        raise errors.UserError(f"{what} with adapters, beneath which routers are frozen; use 0")


def settled(config: Config, model: Model) -> Config:
    """The config with what `lora.adapter` names in its other keys: the folder may go, and a run's
    config.json says all of it.
    """
    if not is_adapted(config):
        return config
    lora = model.lora
    assert lora is not None, "`with_adapters` has made it"
    settled = config.copy_and_resolve_references()
    settled.lora.rank, settled.lora.alpha = lora.rank, lora.alpha
    settled.lora.rslora = lora.rslora
    if lora_lib.parse_targets(config.lora.targets) != lora.targets:
        settled.lora.targets = ",".join(name + lora_lib.SUFFIX for name in lora.targets)
    return settled


def _contradictions(section: Config, lora: Lora) -> list[str]:
    """Keys that say otherwise than the adapter, which holds."""
    asked = {
        "rank": section.rank,
        "alpha": section.alpha,
        "rslora": section.rslora,
        "targets": lora_lib.parse_targets(section.targets),
    }
    problems = []
    for key, value in asked.items():
        option, held = lora_lib.SECTION[key], getattr(lora, key)
        if section[key] != option.default and value != held:
            what = f"config.lora.{key}={section[key]!r}, but the adapter that lora.adapter names"
            problems.append(f"{what} has {held!r}; leave {key} out")
    return problems


def _misfits(lora: Lora, model: Model) -> list[str]:
    """What does not fit between adapters and a model's matrices."""
    sizes = {}
    for tensor in adaptable_tensors(model):
        name = tensor.path[-2]
        sizes[name] = min(*tensor.shape, sizes.get(name, tensor.shape[0]))
    problems = _misfits_of_experts(lora, model)
    if problems:
        return problems
    # A name that matches nothing would be an adapter that is silently not there.
    for name in lora.targets:
        if name not in sizes:
            what = f"config.lora.targets: this model has no {name}{lora_lib.SUFFIX}"
            known = [known + lora_lib.SUFFIX for known in sizes]
            problems.append(unknown(what, name + lora_lib.SUFFIX, known))
    smallest = min((sizes[name] for name in lora.targets if name in sizes), default=lora.rank)
    if lora.rank > smallest:
        what = f"config.lora.rank={lora.rank} is more than the {smallest} rows or columns"
        problems.append(f"{what} of a matrix that it adapts; use at most {smallest}")
    return problems


def _misfits_of_experts(lora: Lora, model: Model) -> list[str]:
    """Adapters beside attention, of a model with experts: these have none, nor have its dense
    layers, whose names would stand for experts too.
    """
    names = [name + lora_lib.SUFFIX for name in lora.targets if name in lora_lib.GROUPS["mlp"]]
    if model.config.experts is None or not names:
        return []
    return [
        f"config.lora.targets: {', '.join(names)} of a model with experts, which have no adapters;"
        " use lora.targets=attention"
    ]


def lines_of_ends(mean_p: float | None) -> list[str]:
    """What is said before training of the mean probability of the tokens that end an answer.

    `mean_p` is None where no answer has such a token: all are cut, say.
    """
    if mean_p is None:
        return ["lora: no held-out answer has an end token, whose p would be looked at"]
    said = [f"lora: end tokens of held-out answers have a mean p of {mean_p:.2g} before training"]
    if mean_p < _UNKNOWN_END:
        said.append(
            f"warning: that is below {_UNKNOWN_END:g}: adapters do not train the token's embedding,"
            " and under DFT what has p ≈ 0 has no weight; use objective=floored_dft, or full"
            " fine-tuning (lora.rank=0)"
        )
    return said


def lines(config: Config, model: Model, source: Path) -> list[str]:
    """What process 0 says of the adapters of a run: which matrices have them, and warnings of
    settings that LoRA is known not to bear. Nothing of a run without.
    """
    lora = model.lora
    if lora is None or not processes.is_first():
        return []
    all_names = [tensor.path[-2] for tensor in adaptable_tensors(model)]
    n_adapted = sum(name in lora.targets for name in all_names)
    n_params = parameter_count(model.trainable)
    said = [
        f"lora: {n_adapted} of {len(all_names)} matrices, {n_params / 1e6:.3g} M parameters of rank"
        f" {lora.rank}, times {lora.scale:g}"
    ]
    # What is known to go wrong is said before hours are spent on it.
    batch, rate = config.train.global_batch, config.optimizer.learning_rate
    if batch > _LARGE_BATCH:
        said.append(
            f"warning: train.global_batch={batch}: with LoRA batches above {_LARGE_BATCH} are known"
            " to end at a higher loss than full fine-tuning, whatever the rank"
        )
    if rate < _LOW_RATE:
        said.append(
            f"warning: optimizer.learning_rate={rate:g}: LoRA wants about ten times the rate of"
            " full fine-tuning"
        )
    # Where products are float32 all of a bfloat16 base is cast for them, which takes more.
    is_wide = config.model.param_dtype == "float32" and config.model.compute_dtype == "bfloat16"
    if is_wide and weights_dtype(source) == "bfloat16":
        said.append(
            "note: model.param_dtype=float32 of a bfloat16 checkpoint takes twice the memory, and"
            " the frozen base is the same in bfloat16"
        )
    return said
