"""Every attention backend keeps packed segments apart, in values and gradients; what does not is
found out and refused.

No TPU or GPU is at hand here: splash is interpreted. Of cuDNN, what it is told is tested with a
stand-in that obeys the call's contract, and the call itself is lowered for CUDA, so that shapes and
types are checked, not numbers.
"""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import config as config_lib, sharding
from dft_jax.models import model as models
from dft_jax.models.attention import kernels, select
from dft_jax.models.attention.kernels import BACKENDS, blocked
from dft_jax.models.attention.masked import causal_attention
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.spec import DecoderSpec, LayerSpec, Rope
from dft_jax.runtime import errors
from dft_jax.training import identity
from dft_jax.types import MORE_SEGMENTS, Batch
from tests import private_jax
from tests.conftest import GOLDEN
from tests.jaxprs import equations, needed
from tests.marks import slow_but

BLOCK = 512


def architecture(H=4, G=2, K=16, window=None):
    return DecoderSpec(
        vocab_size=8,
        hidden_size=8,
        num_heads=H,
        num_kv_heads=G,
        head_dim=K,
        intermediate_size=8,
        rms_epsilon=1e-6,
        tie_embeddings=True,
        max_length=64,
        layers=(LayerSpec(Rope(1e4), sliding_window=window),),
    )


ARCHITECTURE = architecture(window=4096)  # of most tests: compiled once


@pytest.fixture
def splash(monkeypatch):
    monkeypatch.setitem(BACKENDS, "splash", functools.partial(kernels.splash, interpret=True))


@pytest.fixture
def sdpa():
    module = private_jax.cudnn_attention()
    if module is None:
        pytest.skip("this JAX has no call for cuDNN's packed attention where earlier ones had it")
    return module


def draw(L, H=4, G=2, K=16, B=2):
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, (B, L, heads, K)) for key, heads in zip(keys, (H, G, G), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, window, dtype, mesh",
    [
        ("blocked", 30, "float32", "mesh1"),
        ("blocked", None, "bfloat16", "mesh8"),
        ("splash", 30, "float32", "mesh1"),
        ("splash", None, "bfloat16", "mesh8"),
    ],
)
def test_packed_equals_separate(backend, window, dtype, mesh, splash, request):
    c = architecture(window=window)
    found = select.packed_errors(backend, c, request.getfixturevalue(mesh), dtype, BLOCK)
    assert found.keys() == {"output", "dq", "dk", "dv"}
    # tighter than what is asked of a kernel
    assert max(found.values()) < {"bfloat16": 0.06, "float32": 1e-4}[dtype]


@pytest.mark.slow
def test_splash_takes_any_length_padding_and_one_head(splash, mesh1):
    L = 200
    segments_BL = np.zeros((2, L), np.int32)  # the second row is nothing but padding
    segments_BL[0, : L // 2 + 1] = 1

    def run(backend):
        def total(*qkv):
            out = causal_attention(
                *qkv, segments_BL, window=None, block=BLOCK, backend=backend, mesh=mesh1
            )
            return jnp.sin(out).sum(), out

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*draw(L, G=1))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=2e-5), run("splash"), run("blocked")
    )


def no_segments(*qkv, segments_BL, **how):
    return blocked(*qkv, jnp.ones_like(segments_BL), **how)


def segments_of_the_first_row(*qkv, segments_BL, **how):
    return blocked(*qkv, jnp.broadcast_to(segments_BL[:1], segments_BL.shape), **how)


def segments_one_late(*qkv, segments_BL, **how):
    return blocked(*qkv, jnp.roll(segments_BL, 1, axis=1), **how)


def no_window(*qkv, segments_BL, window, block):
    return blocked(*qkv, segments_BL, window=None, block=block)


def window_one_longer(*qkv, segments_BL, window, block):
    return blocked(*qkv, segments_BL, window=window + 1, block=block)


def window_one_shorter(*qkv, segments_BL, window, block):
    return blocked(*qkv, segments_BL, window=window - 1, block=block)


def heads_in_another_order(q_BLHK, *kv, segments_BL, **how):
    """Query head h takes key/value head h % G, not h // R."""
    R = q_BLHK.shape[2] // kv[0].shape[2]
    return blocked(q_BLHK, *(jnp.tile(x, (1, 1, R, 1)) for x in kv), segments_BL, **how)


def unscaled(q_BLHK, *kv, segments_BL, **how):
    return blocked(q_BLHK * 2, *kv, segments_BL, **how)


def nan_in_padding(*qkv, segments_BL, **how):
    return blocked(*qkv, segments_BL, **how) / (segments_BL > 0)[:, :, None, None]


def gradient_leaks(*qkv, segments_BL, **how):
    """Right in values: only the backward pass forgets the segments."""
    attend = functools.partial(blocked, **how)
    leaky = jax.custom_vjp(attend)

    def backward(inputs, cotangent_BLHK):
        *qkv, segments_BL = inputs
        return (
            *jax.vjp(lambda *qkv: attend(*qkv, jnp.ones_like(segments_BL)), *qkv)[1](
                cotangent_BLHK
            ),
            None,
        )

    leaky.defvjp(lambda *inputs: (attend(*inputs), inputs), backward)
    return leaky(*qkv, segments_BL)


BROKEN = [
    no_segments,
    segments_of_the_first_row,
    segments_one_late,
    no_window,
    window_one_longer,
    window_one_shorter,
    heads_in_another_order,
    unscaled,
    nan_in_padding,
    gradient_leaks,
]


@pytest.mark.parametrize(
    "broken",
    slow_but([], BROKEN, slow=[no_segments, window_one_longer, unscaled, gradient_leaks]),
    ids=lambda f: f.__name__,
)
def test_a_broken_backend_is_found_out(broken, monkeypatch, mesh1):
    monkeypatch.setitem(
        BACKENDS, "broken", lambda q, k, v, s, **how: broken(q, k, v, segments_BL=s, **how)
    )
    problem = select.mistake("broken", ARCHITECTURE, mesh1, "bfloat16", BLOCK)
    assert problem and problem.startswith("mixes what is packed together")
    assert ("output" in problem) == (broken is not gradient_leaks)


@pytest.mark.slow
def test_a_model_with_splash_is_the_same_model(splash, monkeypatch, mesh8):
    """Through scan, rematerialisation and eight devices; the checkpoint has a sliding window."""
    rng, L = np.random.default_rng(0), 40
    tokens_BL = rng.integers(1, 90, (4, L)).astype(np.int32)
    segments_BL = np.tile(np.repeat([1, 2, 0], (21, 14, 5)), (4, 1)).astype(np.int32)
    positions_BL = np.tile(
        np.concatenate([np.arange(21), np.arange(14), np.zeros(5)]), (4, 1)
    ).astype(np.int32)
    batch = Batch(tokens_BL, tokens_BL, segments_BL > 0, segments_BL, positions_BL)
    monkeypatch.setattr(models, "choose_attention", lambda asked, *_: asked)
    results = []
    for attention in ("blocked", "splash"):
        model = models.build(read_config(GOLDEN / "mistral"), mesh8, remat="full")
        model = models.with_attention(model, attention)
        params = load_params(Checkpoint(GOLDEN / "mistral"), model)
        results.append(
            jax.jit(jax.grad(lambda p, model=model: jnp.sin(model.apply(p, batch)).sum()))(params)
        )
    assert model.module.backend == "splash"
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), *results)


def test_runs_of_segments():
    """The example of the docstring; a row with too many; all padding."""
    segments_BL = np.array([[7, 7, 7, 2, 0, 0], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]])
    starts_BM, lengths_BM = kernels.runs(segments_BL, 4)
    np.testing.assert_array_equal(
        starts_BM, [[0, 3, 4, -1, -1], [0, 1, 2, 3, 4], [0, -1, -1, -1, -1]]
    )
    np.testing.assert_array_equal(lengths_BM, [[3, 1, 2, -1], [1, 1, 1, 1], [6, -1, -1, -1]])


def stand_in(
    sdpa,
    q_BLHK,
    k_BLHK,
    v_BLHK,
    *,
    q_seqlen,
    kv_seqlen,
    q_offsets,
    kv_offsets,
    scale,
    mask_type,
    **window,
):
    """What the docstring of cuDNN's packed call says, with a softmax over everything."""
    B, L, H, K = q_BLHK.shape
    sdpa.check_layout(
        *(q_BLHK.astype(jnp.bfloat16), k_BLHK.astype(jnp.bfloat16), v_BLHK.astype(jnp.bfloat16)),
        *(None, q_seqlen, kv_seqlen, q_offsets, kv_offsets, None, None, sdpa.AttentionLayout.BTNH),
    )
    # a known fault of the call before
    assert k_BLHK.shape == q_BLHK.shape or jax.__version_info__ >= (0, 11)
    assert q_offsets.shape == (B, q_seqlen.shape[1] + 1) and scale == K**-0.5
    assert (
        mask_type == sdpa.MaskType.PADDING_CAUSAL
        and q_seqlen is kv_seqlen
        and q_offsets is kv_offsets
    )
    starts_BM1, ends_BM1 = q_offsets[:, None, :-1], (q_offsets[:, :-1] + q_seqlen)[:, None]
    at_1L1 = jnp.arange(L)[None, :, None]
    inside_BLM = (starts_BM1 >= 0) & (at_1L1 >= starts_BM1) & (at_1L1 < ends_BM1)
    segments_BL = jnp.where(inside_BLM.any(-1), inside_BLM.argmax(-1), -at_1L1[:, :, 0] - 1)
    return blocked(
        q_BLHK, k_BLHK, v_BLHK, segments_BL, window=window["sliding_window_length"], block=L
    )


@pytest.mark.slow
@pytest.mark.parametrize("window, mesh", [(4096, "mesh1"), (None, "mesh8")])
def test_cudnn_is_told_the_segments(window, mesh, sdpa, monkeypatch, request):
    monkeypatch.setattr(sdpa, "dot_product_attention", functools.partial(stand_in, sdpa))
    c = architecture(window=window)
    assert select.mistake("cudnn", c, request.getfixturevalue(mesh), "bfloat16", BLOCK) is None


@pytest.mark.parametrize("most_segments", [4, MORE_SEGMENTS, None])
def test_cudnn_drops_no_segment_when_there_are_many(most_segments, sdpa, monkeypatch, mesh1):
    """It is called for as many as a batch says; where that may be too few, nothing of it is run."""
    monkeypatch.setattr(sdpa, "dot_product_attention", lambda q, k, v, **_: q * jnp.nan)
    segments_BL = np.stack([np.repeat([1, 0], 32), np.repeat([1, 2, 3, 0], 16)])
    how = dict(window=None, block=64)

    def run(**backend):
        def total(*qkv):
            return jnp.sin(causal_attention(*qkv, jnp.array(segments_BL), **how, **backend)).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*draw(64))

    def of_cudnn():
        return run(backend="cudnn", most_segments=most_segments, mesh=mesh1)

    if most_segments is None:
        with pytest.raises(AssertionError, match="number of segments"):
            of_cudnn()
    elif most_segments == MORE_SEGMENTS:
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), of_cudnn(), run())
    else:
        assert np.isnan(of_cudnn()[0]).all()


def pretend_hopper(sdpa, monkeypatch):
    """What the call asks of the machine, before it can be lowered for another."""
    monkeypatch.setattr(sdpa, "check_cudnn_version", lambda: 91400)
    monkeypatch.setattr(sdpa, "check_compute_capability", lambda capability: True)


@pytest.mark.parametrize("mesh", ["mesh1", "mesh8"])
def test_cudnn_lowers_for_cuda(mesh, sdpa, monkeypatch, request):
    """For as many segments as are given, whatever the rows' length; nothing of it is decided on
    the device, which would wait for the host in every layer.
    """
    pretend_hopper(sdpa, monkeypatch)
    mesh = request.getfixturevalue(mesh)
    attend = functools.partial(
        causal_attention, window=100, block=BLOCK, backend="cudnn", most_segments=4, mesh=mesh
    )
    segments_BL = jnp.ones((8, 256), jnp.int32)

    def total(*qkv):
        return attend(*qkv, segments_BL).astype(jnp.float32).sum()

    qkv = [jax.ShapeDtypeStruct((8, 256, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]
    text = (
        jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        .trace(*qkv)
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    assert "sliding_window_length\\22: 100" in text and "max_seg_per_batch\\22: 4" in text
    assert "stablehlo.case" not in text and "stablehlo.if" not in text


def small_model(mesh, backend, remat):
    """Two layers in bfloat16 with a head_dim that kernels take, and a batch's shape."""
    spec = architecture(K=64)
    spec = dataclasses.replace(spec, layers=spec.layers * 2)
    model = models.build(spec, mesh, compute_dtype="bfloat16", remat=remat)
    model = models.with_backend(model, backend)
    batch = sharding.abstract_batch((1, 8, 256), mesh, most_segments=4)
    return model, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)


@pytest.mark.parametrize("remat, times", [("none", 1), ("dots", 1), ("full", 2)])
def test_cudnns_forward_pass_runs_again_under_full_alone(remat, times, sdpa, monkeypatch, mesh1):
    pretend_hopper(sdpa, monkeypatch)
    model, batch = small_model(mesh1, "cudnn", remat)
    lowered = (
        jax.jit(jax.grad(lambda params, batch: model.apply(params, batch).astype("float32").sum()))
        .trace(model.abstract_params, batch)
        .lower(lowering_platforms=("cuda",))
    )
    text = lowered.as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == times
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1


@pytest.mark.parametrize("remat, times", [("none", 1), ("dots", 1), ("full", 2)])
def test_splashs_forward_pass_runs_again_under_full_alone(remat, times, mesh1):
    model, batch = small_model(mesh1, "splash", remat)
    program = jax.make_jaxpr(
        jax.grad(lambda params, batch: model.apply(params, batch).astype("float32").sum())
    )(model.abstract_params, batch)
    names = [equation.params["name"] for equation in equations(needed(program), "pallas_call")]
    assert sum("fwd" in name for name in names) == times, names


def test_without_the_private_call_auto_is_blocked(monkeypatch, mesh1, capfd):
    """A JAX that has moved it costs speed, not a traceback; asked for by name it is an error."""
    monkeypatch.setitem(sys.modules, private_jax.CUDNN, None)
    monkeypatch.setattr(select, "_NATIVE", {"cpu": "cudnn"})
    monkeypatch.setattr(select, "unmet", lambda *_: None)
    assert choose("auto", mesh1) == "blocked"
    assert capfd.readouterr().err.startswith("attention: blocked (cudnn does not run here (")
    with pytest.raises(errors.UserError, match="config.model.attention='cudnn' does not run here"):
        choose("cudnn", mesh1)


def choose(asked, mesh):
    return select.choose_attention(asked, ARCHITECTURE, mesh, "bfloat16", BLOCK)


def test_a_resumed_run_may_have_another():
    assert not [
        key
        for key in identity.kept_on_resume(config_lib.get_default())
        if key.startswith("model.attention")
    ]


def test_auto_on_cpus_is_blocked_and_says_nothing(mesh1, capfd):
    assert choose("auto", mesh1) == "blocked"
    assert capfd.readouterr().err == ""


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(select, "_NATIVE", {"cpu": "splash"})
    monkeypatch.setattr(select, "unmet", lambda *_: None)


@pytest.mark.slow
def test_auto_takes_what_passes_and_says_so_once(as_on_an_accelerator, splash, mesh1, capfd):
    assert choose("auto", mesh1) == "splash"
    assert capfd.readouterr().err == "attention: splash (packed equals separate)\n"


@pytest.mark.slow
def test_auto_falls_back_and_says_why_in_one_line(as_on_an_accelerator, monkeypatch, mesh1, capfd):
    def raises(*_, **__):
        raise NotImplementedError("no such kernel\nand much more")

    for backend, why in (
        (no_segments, "mixes what is packed"),
        (raises, "does not run here (NotImplementedError: no"),
    ):
        monkeypatch.setitem(
            BACKENDS,
            "splash",
            lambda q, k, v, s, b=backend, **how: b(q, k, v, segments_BL=s, **how),
        )
        assert choose("auto", mesh1) == "blocked"
        said = capfd.readouterr().err
        assert said.startswith(f"attention: blocked (splash {why}") and said.count("\n") == 1


@pytest.mark.slow
def test_a_failure_of_what_was_asked_for_is_an_error(as_on_an_accelerator, monkeypatch, mesh1):
    monkeypatch.setitem(
        BACKENDS, "splash", lambda q, k, v, s, **how: no_segments(q, k, v, segments_BL=s, **how)
    )
    with pytest.raises(
        errors.UserError, match="config.model.attention='splash' mixes .* use auto or blocked"
    ):
        choose("splash", mesh1)


@pytest.mark.parametrize(
    "name, device, K, dtype, is_met",
    [
        ("splash", dict(platform="tpu"), 100, "float32", True),
        ("splash", dict(platform="gpu", compute_capability="9.0"), 64, "bfloat16", False),
        ("cudnn", dict(platform="gpu", compute_capability="9.0"), 64, "bfloat16", True),
        ("cudnn", dict(platform="gpu", compute_capability="10.3"), 128, "bfloat16", True),
        ("cudnn", dict(platform="gpu", compute_capability="8.0"), 64, "bfloat16", False),
        ("cudnn", dict(platform="gpu", compute_capability="12.0"), 64, "bfloat16", False),
        ("cudnn", dict(platform="gpu", compute_capability="gfx942"), 64, "bfloat16", False),
        ("cudnn", dict(platform="tpu"), 64, "bfloat16", False),
        ("cudnn", dict(platform="gpu", compute_capability="9.0"), 64, "float32", False),
        ("cudnn", dict(platform="gpu", compute_capability="9.0"), 100, "bfloat16", False),
        ("cudnn", dict(platform="gpu", compute_capability="9.0"), 256, "bfloat16", False),
    ],
)
def test_what_a_backend_needs(name, device, K, dtype, is_met):
    device = types.SimpleNamespace(device_kind="a device", **device)
    problem = select.unmet(name, device, architecture(K=K), dtype)
    assert problem is None if is_met else f"{dtype}, head_dim {K}" in problem
