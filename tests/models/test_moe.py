"""Experts: the layer against a dense one in float64, its sort, what it saves, and its parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import config as config_lib, sharding
from dft_jax.analysis import token_scores
from dft_jax.losses import objectives
from dft_jax.models import moe
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import Model, build, parameter_count, with_lora
from dft_jax.models.spec import ExpertsSpec
from dft_jax.runtime import errors, files
from dft_jax.sampling.prompts import Request
from dft_jax.sampling.sampler import Sampler
from dft_jax.study import measures
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.adapters import lora_for
from dft_jax.training.state import abstract_state
from dft_jax.training.step import StepOptions, make_hyperparameters, make_train_step
from dft_jax.training.throughput import flops_per_token
from dft_jax.types import Batch, Frozen
from tests.conftest import GOLDEN
from tests.jaxprs import equations, needed
from tests.marks import slow_but

B, L, D, F = 4, 12, 16, 8
EXPERTS = ExpertsSpec(count=6, per_token=2, width=F, normalised=True)


def spec_of(experts):
    spec = read_config(GOLDEN / "qwen3_moe")
    return dataclasses.replace(spec, hidden_size=D, experts=experts)


def layer_of(mesh, experts=EXPERTS, dtype="float64"):
    return moe.Experts(spec_of(experts), jnp.dtype(dtype), mesh)


def arrays_of(experts=EXPERTS, rows=B, seed=0):
    """Inputs [B, L, D] and parameters; of large weights, so that the router is far from even."""
    rng = np.random.default_rng(seed)
    E, F = experts.count, experts.width
    params = {
        "router": {"kernel": rng.normal(size=(E, D))},
        "expert_gate": rng.normal(size=(E, F, D)),
        "expert_up": rng.normal(size=(E, F, D)),
        "expert_down": rng.normal(size=(E, D, F)),
    }
    return rng.normal(size=(rows, L, D)), params


def dense(x_BLD, params, experts=EXPERTS):
    """Every expert on every token, in numpy or JAX's float64; those not chosen weigh nothing."""
    logits_BLE = jnp.einsum("BLD,ED->BLE", x_BLD, params["router"]["kernel"])
    shares_BLE = jnp.exp(logits_BLE) / jnp.exp(logits_BLE).sum(axis=-1, keepdims=True)
    least_BL1 = jnp.sort(shares_BLE, axis=-1)[:, :, -experts.per_token, None]
    shares_BLE = jnp.where(shares_BLE >= least_BL1, shares_BLE, 0)
    if experts.normalised:
        shares_BLE = shares_BLE / shares_BLE.sum(axis=-1, keepdims=True)
    gate_BLEF = jnp.einsum("BLD,EFD->BLEF", x_BLD, params["expert_gate"])
    up_BLEF = jnp.einsum("BLD,EFD->BLEF", x_BLD, params["expert_up"])
    gated_BLEF = gate_BLEF / (1 + jnp.exp(-gate_BLEF)) * up_BLEF
    return jnp.einsum("BLEF,EDF,BLE->BLD", gated_BLEF, params["expert_down"], shares_BLE)


def output_and_gradients(layer, x_BLD, params):
    """Of the inputs and all parameters, where the loss weighs each output differently."""

    def loss(x_BLD, params):
        y_BLD = layer(x_BLD, params)
        return jnp.sin(3 * y_BLD.astype(jnp.float64)).sum(), y_BLD

    (_, y_BLD), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x_BLD, params)
    return y_BLD, grads


def in_our_layer(mesh, experts, dtype):
    layer = layer_of(mesh, experts, dtype)

    def apply(x_BLD, params):
        return layer.apply({"params": params}, x_BLD, np.ones(x_BLD.shape[:2], np.int32))

    return apply


def check(found, exact, atol):
    """Against each array's largest element."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert one.shape == other.shape
        most = np.abs(other).max()
        np.testing.assert_allclose(np.asarray(one, np.float64) / most, other / most, atol=atol)


@pytest.fixture(params=["cpu", "tpu"])
def platform(request, monkeypatch):
    """Both ways, whatever the devices are."""
    monkeypatch.setattr(sharding, "platform", lambda mesh: request.param)


@pytest.mark.parametrize(
    "mesh, normalised",
    slow_but([("mesh8", True)], [(m, n) for m in ("mesh1", "mesh8") for n in (True, False)]),
)
def test_outputs_and_gradients_are_those_of_a_dense_layer(mesh, normalised, request, platform):
    """One device, and 2 × 2 × 2, where rows, the width of the model and that of experts are cut."""
    experts = dataclasses.replace(EXPERTS, normalised=normalised)
    with jax.enable_x64(True):
        arrays = arrays_of(experts)
        layer = in_our_layer(request.getfixturevalue(mesh), experts, "float64")
        exact = output_and_gradients(functools.partial(dense, experts=experts), *arrays)
        check(output_and_gradients(layer, *arrays), exact, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("rows, width", [(3, F), (B, 9)])
def test_what_does_not_divide_over_devices_is_the_same(rows, width, mesh8, platform):
    """Rows that every device has, and experts whose width is whole on each."""
    experts = dataclasses.replace(EXPERTS, width=width)
    with jax.enable_x64(True):
        arrays = arrays_of(experts, rows)
        layer = in_our_layer(mesh8, experts, "float64")
        exact = output_and_gradients(functools.partial(dense, experts=experts), *arrays)
        check(output_and_gradients(layer, *arrays), exact, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.03)])
def test_rounding_is_that_of_the_dtype(dtype, atol, mesh1, platform):
    """All experts of each token: in bfloat16 a rounded router would choose others."""
    experts = dataclasses.replace(EXPERTS, per_token=EXPERTS.count)
    with jax.enable_x64(True):
        arrays = jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays_of(experts))
        exact_arrays = jax.tree.map(lambda x: x.astype(jnp.float64), arrays)
        found, _ = output_and_gradients(in_our_layer(mesh1, experts, dtype), *arrays)
        assert found.dtype == dtype
        check(found, dense(*exact_arrays, experts), atol=atol)


def test_pairs_are_sorted_by_expert():
    """The rows of the module's docstring."""
    pairs = moe.sort_pairs(jnp.array([[2, 0], [0, 1], [2, 1]]), 4)
    assert pairs.order_P.tolist() == [1, 2, 3, 5, 0, 4]
    assert (pairs.order_P // 2).tolist() == [0, 1, 1, 2, 0, 2]
    assert pairs.sizes_E.tolist() == [2, 2, 2, 0]
    assert pairs.order_P[pairs.places_P].tolist() == list(range(6))


def test_no_token_is_dropped_where_all_choose_the_same_experts(mesh1, platform):
    """The case in which experts with a limit would drop all but a few."""
    with jax.enable_x64(True):
        x_BLD, params = arrays_of()
        x_BLD[..., 0] = 1.0
        params["router"]["kernel"][:, 0] = [0, 0, 100, 0, 50, 0]
        logits_BLE = np.einsum("BLD,ED->BLE", x_BLD, params["router"]["kernel"])
        _, chosen_NS = moe.route(EXPERTS, jnp.asarray(logits_BLE.reshape(-1, 6)))
        sizes_E = moe.sort_pairs(chosen_NS, 6).sizes_E
        assert sizes_E.tolist() == [0, 0, B * L, 0, B * L, 0]
        found = output_and_gradients(in_our_layer(mesh1, EXPERTS, "float64"), x_BLD, params)
        check(found, output_and_gradients(dense, x_BLD, params), atol=1e-13)


def test_shares_by_hand():
    logits_NE = jnp.log(jnp.array([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]))
    experts = ExpertsSpec(count=4, per_token=2, width=F, normalised=False)
    shares_NS, chosen_NS = moe.route(experts, logits_NE)
    np.testing.assert_allclose(shares_NS, [[0.4, 0.3], [0.25, 0.25]], rtol=1e-6)
    assert chosen_NS.tolist() == [[1, 2], [0, 1]]
    shares_NS, _ = moe.route(dataclasses.replace(experts, normalised=True), logits_NE)
    np.testing.assert_allclose(shares_NS, [[4 / 7, 3 / 7], [0.5, 0.5]], rtol=1e-6)
    shares_NS, _ = moe.route(experts, logits_NE.astype(jnp.bfloat16))
    assert shares_NS.dtype == jnp.float32


def test_a_position_has_no_part_in_another(mesh8, platform):
    """Whatever padding holds, the other outputs are the same, bit for bit, and all are finite."""
    x_BLD, params = jax.tree.map(np.float32, arrays_of())
    layer = jax.jit(in_our_layer(mesh8, EXPERTS, "float32"))
    before_BLD = layer(x_BLD, params)
    for padding in (0.0, 1e4):
        x_BLD[:, -3:] = padding
        after_BLD = layer(x_BLD, params)
        np.testing.assert_array_equal(after_BLD[:, :-3], before_BLD[:, :-3])
        assert np.isfinite(after_BLD).all()


def program_of(policy, platform, sizes=(1, 1, 1)):
    """The gradient of a model of two layers, of which the loop's bodies have one each."""
    mesh = sharding.abstract_mesh(sizes, platform)
    model = build(read_config(GOLDEN / "mixtral"), mesh, remat=policy)
    rows_BL = np.ones((2, 8), np.int32)
    batch = Batch(rows_BL, rows_BL, rows_BL > 0, rows_BL, rows_BL)

    def loss(params):
        return model.apply(params, batch).sum()

    return needed(jax.make_jaxpr(jax.grad(loss))(model.abstract_params))


def test_downs_gradient_lies_in_a_tpus_memory_as_down_does():
    """With the width last, of which a device has few places, its tiles would be mostly empty."""
    spec = read_config(GOLDEN / "mixtral")
    down = (spec.experts.count, spec.hidden_size, spec.experts.width)
    found = list(equations(program_of("none", "tpu"), "layout_constraint"))
    assert [each.outvars[0].aval.shape for each in found] == [down, down]  # it, and its gradient
    assert {each.params["layout"].major_to_minor for each in found} == {(0, 1, 2)}
    assert not list(equations(program_of("none", "cpu"), "layout_constraint"))


@pytest.mark.parametrize("policy, products", [("none", 9), ("dots", 9), ("full", 12)])
def test_the_policy_says_which_products_are_made_again(policy, products):
    """Three forward, two backward of each, and of `full` the three once more."""
    found = equations(program_of(policy, "tpu"), "ragged_dot_general")
    assert len(list(found)) == products


@pytest.mark.parametrize("policy", ["none", "dots"])
def test_nothing_is_kept_of_an_expert_that_is_on_all_tokens(policy):
    """Arrays [E, 1, N, F] of a layer would be E / S times those of the tokens that it is for."""
    spec, N = read_config(GOLDEN / "mixtral"), 16
    n_scans = 0
    for scan in equations(program_of(policy, "gpu"), "scan"):
        n_scans += scan.params["length"] == spec.experts.count
        for out in scan.outvars:
            assert (spec.experts.count, 1, N) != out.aval.shape[-4:-1]
    assert n_scans


def test_parameters_and_flops_of_qwen3_30b_a3b(tmp_path):
    """Of its published config.json: 30.5 B parameters as its card has them, 3.3 B of them active."""
    raw = files.read_json(GOLDEN / "qwen3_moe_oldschema" / "config.json")
    published = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "head_dim": 128,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_hidden_layers": 48,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    }
    files.write_json(tmp_path / "config.json", raw | published)
    model = build(read_config(tmp_path), sharding.abstract_mesh((1, 8, 1)))
    n_params = parameter_count(model.abstract_params)
    assert n_params == 30_532_122_624
    of_one_expert = 3 * 2048 * 768
    n_active = n_params - 48 * 120 * of_one_expert
    assert n_active == pytest.approx(3.35e9, rel=2e-3)
    # Its products, without the embedding; attention over a mean of 0 tokens.
    assert flops_per_token(model, 0.0) == 6 * (n_active - 151936 * 2048)


def test_adapters_are_those_of_attention_alone(mesh1):
    """Of a model with experts and a dense layer."""
    model = build(read_config(GOLDEN / "qwen3_moe"), mesh1)
    section = config_lib.get_default().lora
    section.rank = 4

    def asked(targets):
        section.targets = targets
        return lora_for(section, model)

    assert asked("q_proj,v_proj").targets == ("q", "v")
    adapted = with_lora(model, asked("all-linear"))
    names = {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(adapted.trainable)}
    assert names == {"q", "k", "v", "o"} == set(adapted.lora.targets)
    for targets in ("mlp", "q_proj,gate_proj"):
        with pytest.raises(errors.UserError) as refusal:
            asked(targets)
        assert "config.lora.targets: gate_proj" in str(refusal.value)
        assert "use lora.targets=attention" in str(refusal.value)


PUBLISHED = {
    "qwen3_moe": {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    "mixtral": {"router_aux_loss_coef": 0.02, "router_jitter_noise": 0.0, "sliding_window": None},
}


def read_changed(tmp_path, family, **changes):
    raw = files.read_json(GOLDEN / family / "config.json")
    files.write_json(tmp_path / "config.json", raw | PUBLISHED[family] | changes)
    return read_config(tmp_path)


def test_which_layers_have_experts(tmp_path):
    def with_experts(**changes):
        spec = read_changed(tmp_path, "qwen3_moe", **changes)
        return [n for n, layer in enumerate(spec.layers) if layer.feed_forward == "experts"]

    assert with_experts() == [0, 1, 2, 3]
    # Layers count from 1 here, and from 0 in the list.
    assert with_experts(decoder_sparse_step=2) == [1, 3]
    assert with_experts(decoder_sparse_step=2, mlp_only_layers=[3]) == [1]
    assert read_changed(tmp_path, "qwen3_moe", norm_topk_prob=None).experts.normalised is False
    assert read_changed(tmp_path, "mixtral").experts == ExpertsSpec(4, 2, 48, normalised=True)


@pytest.mark.parametrize(
    "family, changes, words",
    [
        ("qwen3_moe", {"output_router_logits": True}, ["output_router_logits=True", "is not"]),
        ("mixtral", {"output_router_logits": True}, ["output_router_logits=True", "to false"]),
        ("mixtral", {"router_jitter_noise": 0.1}, ["router_jitter_noise=0.1"]),
        ("mixtral", {"num_experts_per_tok": 5}, ["num_experts_per_tok=5", "the 4 experts"]),
        ("mixtral", {"num_local_experts": None}, ["'num_local_experts' is missing"]),
        ("qwen3_moe", {"num_local_experts": None}, ["'num_experts' is missing"]),
        ("qwen3_moe", {"num_experts": 8}, ["num_local_experts=6", "only 8"]),
        ("qwen3_moe", {"moe_intermediate_size": None}, ["'moe_intermediate_size' is missing"]),
        ("qwen3_moe", {"mlp_only_layers": [4]}, ["mlp_only_layers=[4]", "from 0 to 3"]),
        ("qwen3_moe", {"mlp_only_layers": [True]}, ["mlp_only_layers=[True]"]),
        ("qwen3_moe", {"decoder_sparse_step": 0}, ["decoder_sparse_step=0 should be at least 1"]),
        ("qwen3_moe", {"shared_expert_intermediate_size": 8}, ["shared_expert_intermediate_size"]),
    ],
)
def test_experts_that_are_refused(family, changes, words, tmp_path):
    with pytest.raises(errors.UserError) as refusal:
        read_changed(tmp_path, family, **changes)
    for word in words:
        assert word in str(refusal.value)


def test_fingerprints_of_other_experts_differ(tmp_path):
    """Runs on either resume on the same alone; those without experts have no such key."""
    found = [read_changed(tmp_path, "qwen3_moe").fingerprint()]
    for key, value in {"num_experts_per_tok": 3, "norm_topk_prob": False}.items():
        found.append(read_changed(tmp_path, "qwen3_moe", **{key: value}).fingerprint())
    assert found[0] != found[1] != found[2] != found[0]
    # What is only of plans is no part of a run, and runs from before it was there resume.
    assert "absent" not in found[0]["experts"]
    assert "experts" not in read_config(GOLDEN / "olmo2").fingerprint()


def batch_shapes(mesh):
    return sharding.abstract_batch((1, 2, 16), mesh)


def programs_of_training(model):
    optimizer = optimizer_lib.make_optimizer(config_lib.get_default().optimizer)
    options = StepOptions.of(config_lib.get_default().train, config_lib.get_default().optimizer)
    step = make_train_step(model, objectives.make_objective("dft"), optimizer, options)
    given = make_hyperparameters(config_lib.get_default().optimizer, 0, 10, model.mesh)
    state = abstract_state(model, optimizer)
    yield step.lower(Frozen(given), state, batch_shapes(model.mesh)).compile


def programs_of_scores(model):
    scorer = token_scores.make_scorer(model, 64)
    yield scorer.lower(model.abstract_params, batch_shapes(model.mesh)).compile


def programs_of_measures(model):
    places = jax.ShapeDtypeStruct((measures.CHUNK_TOKENS,), jnp.int32)
    measure = measures.make_measure(model)
    yield measure.lower(model.abstract_params, batch_shapes(model.mesh), places).compile


def programs_of_sampling(model):
    sampler = Sampler(model, stop_ids=(0,), max_length=64, slots=2)
    yield lambda: sampler.compile_programs([Request("p", 0, (1, 2, 3), 0.0, 4)])


def test_a_tpus_compiler_is_asked_for_the_kernel_of_experts(mesh1):
    """Without it every expert would be multiplied with all pairs on v5e and v6e, with no word."""
    for platform, asked in (("tpu", True), ("cpu", None), ("gpu", None)):
        mesh = sharding.abstract_mesh((1, 1, 1), platform)
        options = build(read_config(GOLDEN / "qwen3_moe"), mesh).compiler_options
        assert options.get("xla_tpu_enable_ragged_dot_kernel") is asked
        assert build(read_config(GOLDEN / "qwen3"), mesh).compiler_options == {}


@pytest.mark.parametrize(
    "make", [programs_of_training, programs_of_scores, programs_of_measures, programs_of_sampling]
)
def test_every_program_that_applies_the_model_asks(make, mesh1, monkeypatch):
    """By an option that no compiler has: it says so where it is asked."""
    option = property(lambda model: {"no_such_option": True})
    monkeypatch.setattr(Model, "compiler_options", option)
    for compile_one in make(build(read_config(GOLDEN / "qwen3_moe"), mesh1)):
        with pytest.raises(Exception, match="no_such_option"):
            compile_one()
