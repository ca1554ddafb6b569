"""Sampling with images: against full forward passes, and itself in other arrangements."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.data.image_rows import image_batch, positions_of
from dft_jax.models import cached
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build, head, with_tower
from dft_jax.sampling import prompts
from dft_jax.sampling.sampler import Request, Sampler
from dft_jax.types import Batch
from tests import commands
from tests.conftest import make_mesh
from tests.image_examples import FOLDER, SIZES, SPEC, example_of
from tests.marks import slow_but

VISION = SPEC.vision
LENGTH, PATCHES = 128, 256  # of the rows of the naive loop


@functools.cache
def load(sizes=(1, 1, 1), dtype="float32"):
    """(model with its tower, params)."""
    text = build(
        SPEC, make_mesh(*sizes), param_dtype=dtype, compute_dtype=dtype, attention_block=16
    )
    model = with_tower(text)
    return model, load_params(Checkpoint(FOLDER), model)


@functools.cache
def request_of(number, temperature=0.0, sample=0, limit=12):
    """The prompt of example `number`, without its answer."""
    example = example_of(SIZES[number], number)
    ids = tuple(example.ids[:-4].tolist())
    return Request(f"p{number}", sample, ids, temperature, limit, example.images)


def row_of(ids, pictures, cuts):
    """One row of a training batch."""
    grids = [picture.grid for picture in pictures]
    tokens_BL, segments_BL = np.zeros((2, 1, LENGTH), np.int32)
    positions_BL3 = np.zeros((1, LENGTH, 3), np.int32)
    n = len(ids)
    tokens_BL[0, :n], segments_BL[0, :n] = ids, 1
    positions_BL3[0, :n] = positions_of(np.array(ids, np.int32), grids, VISION).T
    images = None
    if cuts:
        images = image_batch(tokens_BL, positions_BL3, [cuts], VISION, PATCHES)
    positions_BL = positions_BL3[:, :, 0]
    return Batch(tokens_BL, tokens_BL, segments_BL > 0, segments_BL, positions_BL, images=images)


@functools.cache
def forward(sizes=(1, 1, 1), dtype="float32"):
    model, params = load(sizes, dtype)

    @jax.jit
    def logits_of(params, batch):
        hidden_BLD = model.apply(params, batch)
        return jnp.einsum("BLD,VD->BLV", hidden_BLD, head(params).astype(hidden_BLD.dtype))[0]

    return lambda batch: np.asarray(logits_of(params, batch))


@functools.cache
def naive(request):
    """The most probable token, from one full forward pass of the row so far, over and over."""
    cuts = [picture.cut() for picture in request.images]
    ids = list(request.prompt_ids)
    for _ in range(request.max_new_tokens):
        logits_LV = forward()(row_of(ids, request.images, cuts))
        ids.append(int(logits_LV[len(ids) - 1].argmax()))
    return tuple(ids[len(request.prompt_ids) :])


@functools.cache
def sampler(sizes=(1, 1, 1), slots=8):
    model, params = load(sizes)
    made = Sampler(model, stop_ids=[], max_length=150, slots=slots)
    return lambda asked, watch=None: made.sample(params, asked, progress=False, watch=watch), made


def ids_of(completions):
    return {(made.request.problem, made.request.sample): made.ids for made in completions}


@pytest.mark.slow
def test_greedy_equals_full_forward_passes():
    """Prompts of text, one image and two, in one call; windows whole and cut off."""
    asked = [request_of(number) for number in range(len(SIZES))]
    found = ids_of(sampler()[0](asked))
    assert len({*found.values()}) == len(asked), "the images and texts should matter"
    for request in asked:
        assert found[request.problem, 0] == naive(request), request.problem


@pytest.mark.slow
def test_prefill_and_five_tokens_equal_one_forward_pass():
    """Logits behind prompts of one, two and no images, which are prefilled together, in float64."""
    with jax.enable_x64(True):
        model, params = load(dtype="float64")
        asked = [request_of(number, limit=5) for number in (0, 3, 1)]
        new_B5 = np.random.default_rng(0).integers(1, 200, (3, 5))
        shape = prompts.Shape(LENGTH, PATCHES)
        arrays = prompts.fill(prompts.distinct(asked), shape, 3, VISION)

        @jax.jit
        def run(params, arrays, new_B5, deltas_B):
            apart = cached.unstack(params, model=model)
            hidden_BD, cache = cached.prefill(
                apart, model, arrays.tokens_PL, arrays.lengths_P, arrays.images
            )
            found = [hidden_BD]
            cache = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 8), (0, 0))), cache)
            for number in range(5):
                places_B = arrays.lengths_P + number
                hidden_BD, cache = cached.decode(
                    apart, model, new_B5[:, number], places_B, cache, deltas_B
                )
                found.append(hidden_BD)
            return jnp.einsum("TBD,VD->BTV", jnp.stack(found), head(params))

        deltas_B = np.array([prompt.delta(VISION) for prompt in prompts.distinct(asked)])
        assert deltas_B.tolist() == [3 - 6, (3 - 6) + (8 - 40), 0]
        found_BTV = np.asarray(run(params, arrays, new_B5, deltas_B))
        for b, request in enumerate(asked):
            cuts = [picture.cut() for picture in request.images]
            row = row_of([*request.prompt_ids, *new_B5[b]], request.images, cuts)
            n = len(request.prompt_ids)
            expected_TV = forward(dtype="float64")(row)[n - 1 : n + 5]
            np.testing.assert_allclose(found_BTV[b], expected_TV, rtol=0, atol=1e-9)


ARRANGEMENTS = [dict(slots=1), dict(slots=3), dict(sizes=(2, 2, 2), slots=5)]


@pytest.mark.parametrize("arrangement", slow_but([], ARRANGEMENTS, slow=ARRANGEMENTS[1:]), ids=str)
def test_a_sample_does_not_depend_on_the_arrangement(arrangement):
    """Of slots, neighbours, order and devices."""
    asked = []
    for number in (1, 0, 3, 7):
        asked += [request_of(number, 1.0, sample, limit=6 + 3 * sample) for sample in range(3)]
    expected = ids_of(sampler()[0](asked))
    assert ids_of(sampler(**arrangement)[0](asked[::-1])) == expected


@pytest.mark.slow
def test_all_that_sampling_needs_is_compiled_ahead():
    model, params = load()
    asked = [request_of(number) for number in (1, 0, 2)]
    ready = Sampler(model, stop_ids=[], max_length=150, slots=3)
    ready.compile_programs(asked)
    commands.compiled.clear()
    assert len(list(ready.sample(params, asked, progress=False))) == 3
    assert commands.compiled == []


def other_picture(request):
    """The same prompt with another image of the same size."""
    [picture] = request.images
    return dataclasses.replace(request, images=(dataclasses.replace(picture, sha256="other"),))


def test_prompts_are_one_where_ids_and_images_are_equal():
    """Ids say of an image only how large it is."""
    one = request_of(0)
    again = dataclasses.replace(one, sample=1)
    copied = dataclasses.replace(one.images[0].file, name="a copy of the file")
    copy = dataclasses.replace(one, images=(dataclasses.replace(one.images[0], file=copied),))
    found = prompts.distinct([one, other_picture(one), again, copy, request_of(1)])
    assert [len(prompt.requests) for prompt in found] == [3, 1, 1]


def test_blocks_are_of_few_shapes():
    """Lengths and patches by powers of two; text apart, since its program has no tower."""
    asked = [request_of(number) for number in range(len(SIZES))]
    every = prompts.distinct(asked)
    assert [prompt.n_patches for prompt in every] == [24, 0, 128, 184, 4, 144, 0, 24]
    blocks = prompts.in_blocks(every, 150, VISION, lambda n_patches: 2)
    found = [(block.shape.n_patches, len(block.prompts)) for block in blocks]
    assert found == [(0, 2), (64, 2), (64, 1), (128, 1), (256, 2)]
    assert {block.shape.length for block in blocks} == {64}
    # A prompt cannot have more patches than its tokens are units of.
    assert prompts._patch_bucket(400, 150, VISION) == 512
    assert prompts._patch_bucket(600, 150, VISION) == 640


def test_rows_beyond_the_prompts_are_empty():
    arrays = prompts.fill(prompts.distinct([request_of(0)]), prompts.Shape(64, 64), 3, VISION)
    assert arrays.tokens_PL.shape == (3, 64)
    assert arrays.images.images_BI[0].max() == 1
    assert not arrays.images.images_BI[1:].any()
    assert not arrays.images.units_BL[1:].any()
    text = prompts.fill(prompts.distinct([request_of(1)]), prompts.Shape(64), 2, VISION)
    assert text.images is None


def test_a_model_without_its_tower_has_slots_as_ever():
    """So its programs are the same."""
    text = build(SPEC, make_mesh())
    plain = Sampler(text, stop_ids=[], max_length=150, slots=2)
    assert plain._no_admission(2).deltas_B is None
    assert plain._empty.compile(n_slots=2, size=64, n_outputs=64).deltas_B is None
