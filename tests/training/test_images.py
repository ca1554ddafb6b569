"""Training on rows with images: what is trained, packing, micro-batches, meshes."""

import functools

import jax
import numpy as np
import pytest

from dft_jax import config as config_lib, sharding
from dft_jax.data import batches, packing
from dft_jax.data.image_files import Picture
from dft_jax.losses import objectives
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.lora import Lora
from dft_jax.models.model import build, with_lora, with_tower
from dft_jax.models.parts import PARTS
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.state import init_state
from dft_jax.training.step import StepOptions, make_hyperparameters, make_loss, make_train_step
from dft_jax.types import Frozen
from tests.conftest import make_mesh
from tests.image_examples import FOLDER, SIZES, SPEC, image_examples
from tests.marks import slow_but

ROW_LENGTH = 128


@functools.cache
def examples():
    return image_examples()


def model_on(mesh, parts="text", dtype="float32"):
    text = build(SPEC, mesh, param_dtype=dtype, compute_dtype=dtype, attention_block=16)
    return with_tower(text, parts)


def steps_of(mesh, accumulation=1, by_examples=False):
    return batches.TrainBatches(
        examples(),
        mesh,
        steps=2,
        global_batch=8,
        seed=0,
        accumulation=accumulation,
        row_length=ROW_LENGTH,
        vision=SPEC.vision,
        by_examples=by_examples,
    )


@functools.cache
def trained(mesh, parts="text", accumulation=1):
    """(parameters before, after two steps, sums of the last)."""
    model = model_on(mesh, parts)
    config = config_lib.get_default()
    config.optimizer.update({"learning_rate": 1e-3, "warmup_fraction": 0.0})
    optimizer = optimizer_lib.make_optimizer(config.optimizer)
    step = make_train_step(model, objectives.make_objective("dft"), optimizer, StepOptions())
    params = load_params(Checkpoint(FOLDER), model)
    before = jax.device_get(params)
    part, base = model.divide(params)
    frozen = Frozen(make_hyperparameters(config.optimizer, 0, 2, mesh), base=base)
    state = init_state(part, model, optimizer)
    for _, packed in steps_of(mesh, accumulation).starting_at(0):
        batch = sharding.device_batch(packed.batch, mesh, packed.n_rows)
        state, sums = step(frozen, state, batch)
    return before, jax.device_get(model.join(state.params, base)), jax.device_get(sums)


def moved(before, after):
    """The names of trees with a leaf that changed."""
    places = {
        "text": lambda tree: {name: tree[name] for name in tree if name != "vision"},
        "merger": lambda tree: tree["vision"]["merger"],
        "tower": lambda tree: {name: tree["vision"][name] for name in ("patch_embed", "blocks")},
    }
    found = set()
    for name, place in places.items():
        same = jax.tree.map(np.array_equal, place(before), place(after))
        if not any(jax.tree.leaves(same)):
            found.add(name)
        else:
            assert all(jax.tree.leaves(same)), f"a part of {name} alone has changed"
    return found


@pytest.mark.parametrize("parts", PARTS)
def test_what_is_trained(parts, mesh1):
    """By the shapes; each parameter is in one of the two parts, and joining them gives all."""
    model = model_on(mesh1, parts)
    part, base = model.divide(model.abstract_params)
    text = {"embed", "final_norm", "head", "layers"}
    expected = {
        "text": text,
        "text+merger": text | {"vision"},
        "merger": {"vision"},
        "all": text | {"vision"},
    }
    assert part.keys() == expected[parts]
    assert (
        part.get("vision", {}).keys()
        == {
            "text": set(),
            "text+merger": {"merger"},
            "merger": {"merger"},
            "all": {"merger", "patch_embed", "blocks"},
        }[parts]
    )
    assert model.join(part, base) == model.abstract_params
    assert (base is None) == (parts == "all")
    assert model.trains_head == (parts != "merger")


@pytest.mark.parametrize("parts", slow_but([], ["text", "all"], slow=["all"]))
def test_what_a_step_changes(parts, mesh1):
    before, after, sums = trained(mesh1, parts)
    assert moved(before, after) == ({"text", "merger", "tower"} if parts == "all" else {"text"})
    assert sums["tokens"] == 4 * 8


def loss_and_gradient(rows, n_patches, mesh=(1, 1, 1)):
    """Of all parameters, in float64, of rows of examples."""
    with jax.enable_x64(True):
        model = model_on(make_mesh(*mesh), "all", "float64")
        params = load_params(Checkpoint(FOLDER), model)
        loss = make_loss(model, objectives.make_objective("dft"), 64)
        batch = packing.fill_rows(
            examples().examples, rows, ROW_LENGTH, vision=SPEC.vision, n_patches=n_patches
        )
        function = jax.jit(jax.value_and_grad(lambda params: loss(params, batch, 32.0)[0]))
        return jax.device_get(function(params))


@pytest.mark.slow
def test_packed_equals_one_by_one():
    """Loss and the gradient of every parameter, those of the tower among them."""
    apart, gradient_apart = loss_and_gradient([[number] for number in range(8)], 256)
    packed, gradient = loss_and_gradient([[0, 1, 3], [2, 4], [5, 6, 7]], 384)
    np.testing.assert_allclose(packed, apart, rtol=1e-10)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for leaf, expected in zip(*map(jax.tree.leaves, (gradient, gradient_apart)), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-9 * largest)


@pytest.mark.slow
def test_rows_that_are_cut_equal_whole_ones():
    """Tokens of images and their three positions are laid out with their rows."""
    rows = [[0, 1, 3], [2, 4]]
    whole, gradient_whole = loss_and_gradient(rows, 384)
    cut, gradient = loss_and_gradient(rows, 384, mesh=(1, 1, 1, 2))
    np.testing.assert_allclose(cut, whole, rtol=1e-12)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient_whole))
    for leaf, expected in zip(*map(jax.tree.leaves, (gradient, gradient_whole)), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-11 * largest)


@pytest.mark.parametrize("how", slow_but([], ["mesh", "accumulation"], slow=["mesh"]))
def test_other_layouts_make_the_same_update(how, mesh1, mesh8):
    before, expected, sums = trained(mesh1, "all")
    if how == "mesh":
        _, found, other_sums = trained(mesh8, "all")
    else:
        _, found, other_sums = trained(mesh1, "all", accumulation=2)
    np.testing.assert_allclose(other_sums["loss"], sums["loss"], rtol=1e-4)
    np.testing.assert_allclose(other_sums["gradient_norm"], sums["gradient_norm"], rtol=1e-3)
    # Adam divides by the size of a gradient, so that small ones differ most.
    difference = jax.tree.map(
        lambda x, y, z: np.abs(x - y).sum() / np.abs(y - z).sum(), found, expected, before
    )
    assert max(jax.tree.leaves(difference)) < 0.02


@pytest.mark.slow
def test_a_reference_sees_the_images_too(mesh1):
    """Compared with itself a model has no distance; compared with one of another tower it has."""
    model = model_on(mesh1)
    params = load_params(Checkpoint(FOLDER), model)
    batch = packing.fill_rows(
        examples().examples, [[0, 1, 3]], ROW_LENGTH, vision=SPEC.vision, n_patches=256
    )

    def loss_of(objective):
        loss = make_loss(model, objectives.make_objective(objective), 64)
        return jax.jit(lambda reference: loss(params, batch, 1.0, reference)[0])

    asft = loss_of("asft(kl=1)")
    np.testing.assert_allclose(asft(params), loss_of("dft")(None), rtol=1e-4)
    tower = jax.tree.map(lambda leaf: 1.1 * leaf, params["vision"])
    assert asft(params | {"vision": tower}) > asft(params) + 1e-3


def test_adapters_are_beside_a_frozen_tower(mesh1):
    lora = Lora(rank=2, alpha=4.0, rslora=False, targets=("q", "v"))
    model = with_lora(model_on(mesh1), lora)
    assert model.tower is not None
    assert "vision" in model.abstract_base
    batch = packing.fill_rows(
        examples().examples, [[0]], ROW_LENGTH, vision=SPEC.vision, n_patches=64
    )
    shape = jax.eval_shape(model.apply, model.abstract_base, batch, model.abstract_adapters)
    assert shape.shape == (1, ROW_LENGTH, SPEC.hidden_size)


def test_each_process_decodes_the_images_of_its_own_rows(mesh1, monkeypatch):
    """Two of them have half of the rows each, and between them the batch of one alone."""

    def packed_by(held):
        monkeypatch.setattr(batches.sharding, "process_rows", lambda mesh, n_rows: held(n_rows))
        read.clear()
        (step,) = batches.SequentialBatches(
            examples(), mesh1, global_batch=8, row_length=ROW_LENGTH, vision=SPEC.vision
        )
        return step.batch, sorted(read)

    cut = Picture.cut

    def counted(self):
        read.append(self.file.name)
        return cut(self)

    read: list[str] = []
    monkeypatch.setattr(Picture, "cut", counted)
    whole, all_names = packed_by(lambda n: range(n))
    first, first_names = packed_by(lambda n: range(n // 2))
    second, second_names = packed_by(lambda n: range(n // 2, n))
    assert sorted(first_names + second_names) == all_names
    assert first_names and second_names and len(all_names) == sum(map(len, SIZES))
    both = jax.tree.map(lambda *halves: np.concatenate(halves, axis=1), first, second)
    jax.tree.map(np.testing.assert_array_equal, both, whole)


def test_budgets_of_patches_are_few(mesh1):
    """One for each number of rows, and none for steps without an image."""
    every = examples()
    no_images = [number for number, example in enumerate(every.examples) if not example.images]
    ahead = [[0, 1], [2, 4], [3, 7], no_images]
    packer = batches.Packer(
        every, mesh1, ahead, accumulation=1, row_length=ROW_LENGTH, vision=SPEC.vision
    )
    needs = {tuple(step): packer.pack(step) for step in ahead}
    shapes = set()
    for step, packed in needs.items():
        images = packed.batch.images
        n_patches = 0 if images is None else images.images_BI.shape[2]
        most = sum(every.examples[number].n_patches for number in step)
        assert n_patches % SPEC.vision.window_patches == 0
        assert (n_patches == 0) == (most == 0)
        shapes.add((packed.n_rows, n_patches))
    assert shapes <= set(packer.shapes)
    assert len(packer.shapes) <= 2 * len(packer.row_counts)
    # More than any step ahead needs: a shape of its own.
    more = packer.pack(list(range(8)))
    assert more.batch.images.images_BI.shape[2] >= 256
