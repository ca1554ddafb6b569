"""The tower and rows with images, against `transformers`: features, logits, gradients, packing,
eight devices. tests/golden/make_vision_golden.py says what is in the files.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.data.image_rows import CutImage, image_batch, positions_of
from dft_jax.models import vision
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tensors import tensor_table
from dft_jax.models.model import build, head, with_tower
from dft_jax.models.spec import at
from dft_jax.types import Batch
from tests.conftest import GOLDEN, make_mesh
from tests.golden.pictures import patches
from tests.marks import slow_but

FOLDER = GOLDEN / "qwen2_5_vl"
# As in make_vision_golden.py, which needs torch: rows and columns of patches of each image.
GRIDS = {
    "none": [],
    "small": [(4, 6)],
    "tall": [(20, 12)],
    "two": [(4, 6), (10, 16)],
    "square": [(16, 16)],
}
SPEC = read_config(FOLDER)
VISION = SPEC.vision


@functools.cache
def golden():
    return dict(np.load(FOLDER / "images.npz"))


def of(case, what):
    return golden()[f"{case}.{what}"]


def cut_images(case):
    return [CutImage(patches(grid, number), grid) for number, grid in enumerate(GRIDS[case])]


def opened(mesh, dtype):
    """(model with its tower, params)."""
    text = build(SPEC, mesh, param_dtype=dtype, compute_dtype=dtype, attention_block=16)
    model = with_tower(text)
    return model, load_params(Checkpoint(FOLDER), model)


def rows(packed, length, n_patches):
    """A batch of rows, each of some cases one after another."""
    B = len(packed)
    tokens_BL, segments_BL = np.zeros((2, B, length), np.int32)
    positions_BL3 = np.zeros((B, length, 3), np.int32)
    for b, cases in enumerate(packed):
        place = 0
        for number, case in enumerate(cases):
            ids_L = of(case, "token_ids")
            here = slice(place, place + len(ids_L))
            tokens_BL[b, here], segments_BL[b, here] = ids_L, 1 + number
            positions_BL3[b, here] = positions_of(ids_L, GRIDS[case], VISION).T
            place = here.stop
    images = [[image for case in cases for image in cut_images(case)] for cases in packed]
    return Batch(
        tokens_BL,
        tokens_BL,
        segments_BL > 0,
        segments_BL,
        positions_BL3[:, :, 0],
        images=image_batch(tokens_BL, positions_BL3, images, VISION, n_patches),
    )


def logits_of(opened, batch):
    model, params = opened

    @jax.jit
    def run(params, batch):
        hidden_BLD = model.apply(params, batch)
        return jnp.einsum("BLD,VD->BLV", hidden_BLD, head(params).astype(hidden_BLD.dtype))

    return np.asarray(run(params, batch))


@pytest.fixture(scope="module")
def exact():
    """In float64, on one device."""
    with jax.enable_x64(True):
        yield opened(make_mesh(), "float64")


@pytest.mark.parametrize("case", GRIDS)
def test_positions_equal_transformers(case):
    found_3L = positions_of(of(case, "token_ids"), GRIDS[case], VISION)
    np.testing.assert_array_equal(found_3L, of(case, "positions"))
    assert found_3L.max() + 1 - found_3L.shape[1] == of(case, "delta")


def test_features_and_logits_equal_transformers(exact):
    """All cases in one batch, padded to one length and number of patches."""
    model, params = exact
    batch = rows([[case] for case in GRIDS], length=80, n_patches=256)
    features_BJD = np.asarray(jax.jit(model.tower.apply)(params["vision"], batch.images))
    logits_BLV = logits_of(exact, batch)
    for b, case in enumerate(GRIDS):
        expected_LV = of(case, "logits")
        L = len(expected_LV)
        assert np.abs(expected_LV).max() > 1.0, "too small for the comparison to mean anything"
        np.testing.assert_allclose(logits_BLV[b, :L], expected_LV, atol=5e-6)
        units_L = batch.images.units_BL[b]
        found_JD = features_BJD[b][units_L[units_L > 0] - 1]
        np.testing.assert_allclose(found_JD, of(case, "features"), atol=5e-6, rtol=0)


@pytest.mark.slow
def test_packed_equals_separate_and_more_padding_changes_nothing(exact):
    """Cases `small` and `two` in one row, whose windows and images have numbers of their own."""
    apart_BLV = logits_of(exact, rows([["small"], ["two"]], length=80, n_patches=192))
    together_BLV = logits_of(exact, rows([["small", "two"]], length=80, n_patches=256))
    first, second = len(of("small", "token_ids")), len(of("two", "token_ids"))
    np.testing.assert_allclose(together_BLV[0, :first], apart_BLV[0, :first], atol=1e-9)
    both = slice(first, first + second)
    np.testing.assert_allclose(together_BLV[0, both], apart_BLV[1, :second], atol=1e-9)
    wider_BLV = logits_of(exact, rows([["small", "two"]], length=80, n_patches=384))
    np.testing.assert_allclose(wider_BLV[0, both], together_BLV[0, both], atol=1e-12, rtol=0)


@pytest.mark.slow
def test_gradients_of_every_tensor_equal_transformers(exact):
    """Of the mean cross-entropy: norms, and products with the tensors themselves."""
    model, params = exact
    n = len(of("two", "token_ids"))
    batch = rows([["two"]], length=n, n_patches=192)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits_LV = jnp.einsum("LD,VD->LV", model.apply(params, batch)[0], head(params))
        logp_LV = jax.nn.log_softmax(logits_LV[:-1])
        return -jnp.take_along_axis(logp_LV, batch.tokens_BL[0, 1:, None], axis=1).mean()

    found = gradient(params)
    expected = dict(np.load(FOLDER / "gradients.npz"))
    for tensor in tensor_table(model):
        value, grad = np.asarray(at(params, tensor.path)), np.asarray(at(found, tensor.path))
        if tensor.index:
            value, grad = value[tensor.index], grad[tensor.index]
        name = tensor.name.replace("visual.", "model.visual.")
        if name.startswith(("model.layers", "model.norm", "model.embed")):
            name = name.replace("model.", "model.language_model.", 1)
        norm, product = expected.pop(name)
        assert norm > 1e-6
        np.testing.assert_allclose(np.linalg.norm(grad), norm, rtol=1e-5, err_msg=name)
        atol = 1e-5 * norm * np.linalg.norm(value)
        np.testing.assert_allclose((grad * value).sum(), product, rtol=0, atol=atol)
    assert not expected


@pytest.mark.parametrize("block", slow_but([64], [32, 64, 256]))
def test_attention_by_blocks_equals_dense_attention(block):
    """Windows by bands and images by blocks of queries, with padding, against all scores."""
    with jax.enable_x64(True):
        key = jax.random.split(jax.random.key(0), 3)
        q, k, v = (jax.random.normal(one, (2, 192, 3, 8), jnp.float64) for one in key)
        # Contiguous, at most 64 long, over the edges of blocks; the second row is not full.
        windows_BI = np.zeros((2, 192), np.int32)
        windows_BI[0] = np.repeat([1, 2, 3, 4, 5], [40, 64, 12, 60, 16])
        windows_BI[1, :120] = np.repeat([1, 2], [56, 64])
        images_BI = np.where(windows_BI > 2, 2, np.minimum(windows_BI, 1))

        def dense(numbers_BI):
            scores = np.einsum("BQHK,BSHK->BHQS", q, k) / np.sqrt(8)
            sees = (numbers_BI[:, :, None] == numbers_BI[:, None, :])[:, None]
            weights = np.where(sees, np.exp(scores), 0)
            return np.einsum("BHQS,BSHK->BQHK", weights / weights.sum(-1, keepdims=True), v)

        is_real = windows_BI > 0
        found = vision.window_attention(q, k, v, windows_BI, 64)
        np.testing.assert_allclose(found[is_real], dense(windows_BI)[is_real], atol=1e-12)
        found = vision.full_attention(q, k, v, images_BI, block=block)
        np.testing.assert_allclose(found[is_real], dense(images_BI)[is_real], atol=1e-12)
        # Of a row without padding, too, no query is without a key: its gradient would be NaN.
        ones_BI = np.ones((2, 100), np.int32)
        grad = jax.grad(
            lambda q: vision.full_attention(q, k[:, :100], v[:, :100], ones_BI, block).sum()
        )
        assert np.isfinite(grad(q[:, :100])).all()


def test_bytes_are_normalised_as_the_processor_does(mesh1):
    """0, 128 and 255 of each colour, by a kernel that passes one pixel of each on."""
    spec = dataclasses.replace(VISION, hidden_size=16, num_heads=1, depth=1)
    float32 = jnp.dtype("float32")
    module = vision._PatchEmbed(spec, float32, mesh1, float32)
    kernel = np.zeros((16, 3, 2, 14, 14), np.float32)
    for colour in range(3):
        # Both frames count, and a frame by itself.
        kernel[colour, colour, :, 5, 6] = 0.75, 0.25
    patches_BIX = np.zeros((1, 3, 588), np.uint8)
    patches_BIX[0, :] = np.array([0, 128, 255])[:, None]
    found = module.apply({"params": {"kernel": kernel}}, patches_BIX)[0, :, :3]
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.array([0, 128, 255])[:, None] / 255 - mean) / std
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_eight_devices_give_the_same_logits(mesh8):
    packed = [["two"], ["small"], ["tall"], ["none"]]
    batch = rows(packed, length=80, n_patches=256)
    one_BLV = logits_of(opened(make_mesh(), "float32"), batch)
    eight_BLV = logits_of(opened(mesh8, "float32"), batch)
    is_text = batch.segments_BL > 0
    np.testing.assert_allclose(eight_BLV[is_text], one_BLV[is_text], atol=2e-4)
    _, params = opened(mesh8, "float32")
    qkv = params["vision"]["blocks"]["qkv"]["kernel"]
    # heads over tensor, width over fsdp, copied over data
    assert qkv.addressable_shards[0].data.size == qkv.size // 4
