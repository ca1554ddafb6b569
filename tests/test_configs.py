"""Every recipe in configs/ is whole and legal, for each argument that it offers."""

import importlib.util
import pathlib

import pytest

from dft_jax import config as config_lib
from dft_jax.losses import objectives

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
RECIPES = sorted(file.stem for file in FOLDER.glob("*.py"))
# What a recipe leaves to its user.
LEFT_OPEN = dict.fromkeys(("gsm8k", "mixture"), ["config.model.path is empty"])


def get_config(name, argument=""):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def problems(config, name):
    expected = LEFT_OPEN.get(name, [])
    return [
        p for p in config_lib.validate(config) if not any(p.startswith(text) for text in expected)
    ]


@pytest.mark.parametrize("objective", sorted(objectives.OBJECTIVES))
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_legal(name, objective):
    config = get_config(name, f"objective={objective}")
    assert config.objective == objective and problems(config, name) == []


def test_the_papers_table_has_its_five_models():
    sizes = ("1.5b", "7b", "llama3b", "llama8b", "deepseek7b")
    configs = {
        size: get_config("numina_qwen25_math", f"objective=sft,size={size}") for size in sizes
    }
    assert all(problems(config, "numina_qwen25_math") == [] for config in configs.values())
    assert len({config.model.path for config in configs.values()}) == 5
    assert {
        size: c.optimizer.learning_rate for size, c in configs.items() if size == "llama8b"
    } == {"llama8b": 2e-5}
    assert all(c.train.global_batch == 256 and c.train.steps == 390 for c in configs.values())


def test_the_default_is_the_papers_recipe():
    optimizer = config_lib.get_default().optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.clip_norm) == (
        0.9,
        0.95,
        0.01,
        1.0,
    )
    assert (optimizer.learning_rate, optimizer.warmup_fraction, optimizer.schedule) == (
        5e-5,
        0.1,
        "cosine",
    )
    assert optimizer.decay == "all"


def test_an_argument_may_be_an_objective_with_several_parameters():
    """A comma between its parameters is no end of it."""
    text = "objective=idft(beta=2, most=3),size=7b"
    found = config_lib.parse_argument(text, objective="dft", size="1.5b")
    assert found == {"objective": "idft(beta=2, most=3)", "size": "7b"}
