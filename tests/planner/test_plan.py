"""The memory planner: the walk on small computations, its account against XLA's, the command."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from dft_jax import config as config_lib, plan, sharding
from dft_jax.models.model import DecoderSpec, parameter_count
from dft_jax.models.spec import ExpertsSpec, LayerSpec, Rope
from dft_jax.planner import devices, layouts, liveness, memory, suggestion
from dft_jax.training.options import batch_problems
from experiments.performance import aot
from experiments.planner import check
from tests.commands import ROOT, assert_refused, run_command
from tests.marks import slow_but

NUMINA = f"--config={ROOT}/configs/numina_qwen25_math.py"
MIB = 2**20


def peak_mib(function, *shapes, kept=False, shares=None):
    """MiB that the walk finds for a function of float32 arrays of these shapes."""
    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    last = math.inf if kept else -1
    inputs = [
        liveness.Array(4 * math.prod(s) * (shares or {}).get(s, 1), s, jnp.float32, last=last)
        for s in shapes
    ]
    return liveness.total(liveness.peak(jax.make_jaxpr(function)(*leaves), inputs)) / MIB


X = (512, 512)  # 1 MiB


def sum_and_maximum(x):
    """In one reduction, as GPUs make the statistics of a chunk of logits."""

    def merge(one, other):
        return one[0] + other[0], jnp.maximum(one[1], other[1])

    return jax.lax.reduce((x.T * 3, x.T * 2), (jnp.float32(0), jnp.float32(0)), merge, [0, 1])


def test_the_walk_fuses_reuses_and_frees():
    assert peak_mib(lambda x: jnp.exp(x) * 2 + 1, X) == 1  # fused, in the place of its operand
    assert peak_mib(lambda x: jnp.exp(x) * 2 + 1, X, kept=True) == 2
    assert peak_mib(lambda x: x @ x, X) == 2
    # the first product dies before the last is made
    assert peak_mib(lambda x: x @ x @ x @ x, X) == 3
    assert peak_mib(lambda x: jnp.exp(x) @ x, X) == 3  # a product needs its operand in memory
    assert peak_mib(lambda x: (x.T * 3).sum(), X) < 1.01  # a reduction does not
    assert peak_mib(sum_and_maximum, X) < 1.01  # nor one of two results
    assert peak_mib(lambda x: (x @ x, x)[1], X) == 1  # nobody reads the product
    assert peak_mib(jax.jit(lambda x: jax.checkpoint(lambda y: y @ y)(x)), X) == 2


def test_the_walk_knows_loops_and_shares():
    def stack(x, xs):
        return jax.lax.scan(lambda carry, x: (carry @ x, carry @ carry), x, xs)

    # 4 slices read, 4 stacked, the carried one; within a trip, a slice and the next carry.
    assert peak_mib(stack, X, (4, *X)) == 4 + 4 + 1 + 2

    def stack_alike(x, xs):
        last, stacked = stack(x, xs)
        return last, stacked + xs

    # What is stacked is cut as what it is added to; else it is whole, whatever its shape.
    assert peak_mib(stack_alike, X, (4, *X)) == 4 + 4 + 1 + 2
    assert peak_mib(stack_alike, X, (4, *X), shares={(4, *X): 0.25}) == 1 + 1 + 1 + 2
    assert peak_mib(stack, X, (4, *X), shares={(4, *X): 0.25}) == 1 + 4 + 1 + 2
    # a loop of one trip is none: the slice has died before the second product
    assert peak_mib(stack, X, (1, *X)) == 3

    def accumulate(x):
        return jax.lax.fori_loop(0, 9, lambda i, total: total + jnp.float32(1) * i, x)

    assert peak_mib(accumulate, X) < 1.01  # carried in place


def small(compute="float32", device=devices.CPU):
    config = config_lib.get_default()
    config.data.max_length = 512
    config.train.loss_chunk_tokens = 128
    config.model.attention_block = 128
    config.model.compute_dtype = compute
    spec = DecoderSpec(
        vocab_size=8192,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=1024,
        rms_epsilon=1e-6,
        tie_embeddings=True,
        max_length=512,
        layers=(LayerSpec(Rope(1e4)),) * 6,
    )
    return memory.Planner(config, spec, device)


# Fewer positions than entries of the vocabulary: rows are shared along fsdp.
SHARED = ((1, 8, 1), "dots", 1, 1)
# The parameters on every device, and one row: what gradients are added up in is a large part.
REPLICATED = ((8, 1, 1), "full", 1, 2)
# Rows cut over devices, and the parameters with them.
CUT = ((1, 2, 1, 4), "dots", 2, 1)


@pytest.mark.parametrize(
    "mesh, remat, rows, accumulation",
    slow_but(
        [],
        [
            ((1, 8, 1), "none", 2, 1),
            SHARED,
            ((2, 2, 2), "dots", 2, 1),
            REPLICATED,
            CUT,
        ],
        slow=[SHARED, REPLICATED, CUT],
    ),
)
def test_the_account_is_that_of_xla(mesh, remat, rows, accumulation):
    """The real step for eight devices; experiments/planner has the same for 1.5B parameters."""
    row = check.compare(small(), layouts.StepLayout(mesh, remat, rows, accumulation), jax.devices())
    assert abs(float(row["error_percent"])) < 10, row
    assert abs(float(row["temporary_error_percent"])) < 15, row


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        check.Case("h100", (1, 1, 1), "none", 2, 8),
        check.Case("h100", (1, 1, 1), "dots", 8, 1),
        check.Case("v5e:2x4", (1, 8, 1), "dots", 1),
        # Parameters in bfloat16: what rounding and its statistics need is no second gradient.
        check.Case("h200", (1, 1, 1), "full", 4, 16, "7b"),
        check.Case("h200", (1, 1, 1), "full", 16, 1, "7b"),
    ],
    ids=lambda case: f"{case.model}-{case.device}-{case.remat}-{case.accumulation}",
)
def test_the_account_is_that_of_an_accelerators_compiler(case, monkeypatch):
    """Some of those in experiments/planner, where the compiler is installed."""
    for name, value in aot.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    planner = check.planner_of(case)
    try:
        compiled_for = aot.devices_of(case.device)
    except aot.Missing as missing:
        pytest.skip(str(missing))
    layout = layouts.StepLayout(case.mesh, case.remat, case.rows, case.accumulation)
    with aot.stand_ins(case.device):
        row = check.compare(planner, layout, compiled_for)
    assert abs(float(row["error_percent"])) < 8, row


def test_a_barrier_keeps_nothing_alive():
    """Rounding makes one leaf wait for another by it: the other's gradient is not kept for that."""

    def update(a, b, with_barrier):
        # What is fused into a product, then into a sum of another leaf's.
        first = jnp.tanh(a @ a) * 2
        if with_barrier:
            first, b = jax.lax.optimization_barrier((first, b))
        second = jnp.tanh(b @ b) * 2
        return jnp.sum(first) + jnp.sum(second @ second)

    found = [
        peak_mib(functools.partial(update, with_barrier=with_barrier), X, X)
        for with_barrier in (False, True)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "device, dtype, backend",
    [
        ("h100", "bfloat16", "cudnn"),
        ("b200", "bfloat16", "cudnn"),
        ("h100", "float32", "blocked"),
        ("a100", "bfloat16", "blocked"),
        ("v5e", "float32", "splash"),
    ],
)
def test_a_plan_is_for_the_attention_of_its_device(device, dtype, backend):
    model = small(dtype, devices.described(device)).build((1, 1, 1))
    assert model.module.backend == backend
    assert sharding.platform(model.mesh) == ("tpu" if device.startswith("v") else "gpu")


def test_what_is_kept_where_attention_is_cudnns():
    """Counted by hand: per layer the inputs and outputs of two norms, queries, keys, values and
    attention's output, gate and up, all bfloat16; and float32 statistics for each of the eight
    segments that a row of 512 may have.
    """
    B, L, H, G, K, D, F = 4, 512, 4, 2, 64, 256, 1024
    kept = 2 * B * L * (4 * D + 2 * H * K + 2 * G * K + 2 * F) + 4 * B * 8 * H * L
    planner = small("bfloat16", devices.described("h100"))
    account = planner.memory(layouts.StepLayout((1, 1, 1), "none", B, 1))
    assert account.activations * 1024 == pytest.approx(6 * kept / MIB, rel=1e-6)


def test_less_is_saved_with_more_recomputation_and_fewer_rows():
    planner, mesh = small("bfloat16"), (1, 2, 1)
    saved = {
        remat: planner.memory(layouts.StepLayout(mesh, remat, 4, 1)).activations
        for remat in ("none", "dots", "full")
    }
    assert saved["none"] > 2 * saved["dots"] > 4 * saved["full"] > 0
    two, four = (planner.memory(layouts.StepLayout(mesh, "dots", rows, 2)).total for rows in (2, 4))
    assert two < four
    found = suggestion.fitting(planner, mesh, "dots", 16, (two + four) / 2)
    assert (found.rows, found.accumulation) == (2, 4)
    assert suggestion.fitting(planner, mesh, "dots", 16, two / 2) is None


def test_moments_in_bfloat16_take_half():
    planner, layout = small(), layouts.StepLayout((1, 4, 1), "full", 1, 1)
    whole = planner.memory(layout)
    planner.config.optimizer.moment_dtype = "bfloat16"
    half = dataclasses.replace(planner).memory(layout)
    assert half.moments == pytest.approx(whole.moments / 2, rel=1e-3)
    assert half.parameters == whole.parameters


def test_architectures_are_the_published_ones():
    counts = [1_543_714_304, 7_615_616_512, 3_212_749_824, 8_030_261_248, 3_836_021_760]
    counts += [
        6_910_365_696,
        70_553_706_496,
        30_532_122_624,
        3_754_622_976,
        8_292_166_656,
        72_706_203_648,
    ]
    planners = [
        memory.Planner(config_lib.get_default(), architecture)
        for architecture in devices.ARCHITECTURES.values()
    ]
    assert [
        parameter_count(planner.build((1, 1, 1)).abstract_params) for planner in planners
    ] == counts


def test_the_command_says_what_fits_without_devices_or_weights(capfd, monkeypatch):
    arguments = [
        f"{NUMINA}:size=7b",
        "--device=h200",
        "--devices=16",
        "--config.mesh.tensor=2",
        "--step_rows=16",
    ]
    outcome = run_command(plan.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0 and outcome.compiled == (), outcome
    assert "7.62 B parameters" in outcome.stdout and "data=1 × fsdp=8 × tensor=2" in outcome.stdout
    lines = outcome.stdout.splitlines()
    assert sum(line.split()[:1] in (["none"], ["dots"], ["full"]) for line in lines) >= 5
    assert lines[-1].startswith("fits so: --config.mesh.data=")


def test_a_cut_row_takes_a_part_of_the_memory_and_the_keys_of_all():
    """Of a device's part of the rows: what is kept of its positions, and the gathered keys."""
    planner = small("bfloat16", devices.described("v5p"))
    account = {
        (ways, remat): planner.memory(layouts.StepLayout((1, 4, 1, ways), remat, 2, 1))
        for ways, remat in ((1, "none"), (4, "none"), (1, "full"), (4, "full"))
    }
    rows, length, heads, width, layers = 2, 512, 2, 64, 6
    of_layer = 2 * rows * length * heads * width * 2 * 3 / 4 / 2**30  # keys, values; bfloat16
    kept = {}
    for ways in (1, 4):
        n_gathered = {"none": layers + 1, "full": 2}
        for remat, n in n_gathered.items():
            kept[ways, remat] = account[ways, remat].activations - n * of_layer * (ways > 1)
    assert kept[4, "full"] == pytest.approx(kept[1, "full"] / 4, rel=0.02)
    assert kept[4, "none"] == pytest.approx(kept[1, "none"] / 4, rel=0.02)
    assert account[4, "full"].parameters == pytest.approx(
        account[1, "full"].parameters / 4, rel=0.1
    )


@pytest.mark.parametrize("device", ["v6e", "h100"])
def test_experts_are_planned_as_each_device_computes_them(device):
    """A TPU's program asks its compiler for something, which no program within another may."""
    planner = small("bfloat16", devices.described(device))
    experts = ExpertsSpec(count=8, per_token=2, width=64, normalised=True)
    layers = planner.architecture.with_layers(feed_forward="experts")
    architecture = dataclasses.replace(layers, experts=experts, family="qwen3_moe")
    account = dataclasses.replace(planner, architecture=architecture).memory(
        layouts.StepLayout((1, 2, 1), "full", 1, 2)
    )
    n_params = parameter_count(planner.build((1, 1, 1), architecture).abstract_params)
    assert account.parameters == pytest.approx(4 * n_params / 2 / 2**30, rel=0.05)


def test_rows_are_cut_where_nothing_else_fits():
    """On a device whose kernel can: cuDNN's needs whole rows, so there it is never proposed."""

    def with_one_key_head(device):  # which `tensor` cannot cut
        planner = small("bfloat16", devices.described(device))
        architecture = dataclasses.replace(planner.architecture, num_kv_heads=1)
        return dataclasses.replace(planner, architecture=architecture)

    tpu = with_one_key_head("v5p")
    cut = layouts.StepLayout((1, 4, 1, 2, 1), "full", 1, 1)
    room = tpu.memory(cut).total * 1.01
    found = suggestion.suggest(tpu, 8, 4, room)
    assert found.layout == cut and found.n_devices == 8 and found.choice == {}
    assert "--config.mesh.sequence=2" in str(found)
    gpu = suggestion.suggest(with_one_key_head("h100"), 8, 4, room)
    assert gpu is None or gpu.layout.devices["sequence"] == 1


def test_what_is_proposed_can_be_trained():
    """12 examples fill no 2 micro-batches of a row on each of 8 devices, which training refuses."""
    refused = layouts.StepLayout((8, 1, 1), "none", 1, 2)
    assert batch_problems(12, refused.accumulation, refused.devices, 8)
    planner = small()
    planner.config.train.global_batch = 12
    room = planner.memory(refused).total * 1.01
    assert suggestion.fitting(planner, refused.mesh, refused.remat, 12, room) is None
    offered = [layout.accumulation for layout in layouts.layouts((8, 1, 1), "none", 12, 12)]
    assert offered == [1]
    # 16 examples fill them, however few rows they are packed into.
    offered = [layout.accumulation for layout in layouts.layouts((8, 1, 1), "none", 12, 16)]
    assert offered == [2, 1]


def test_a_config_that_cuts_rows_is_planned_so(capfd, monkeypatch):
    arguments = [f"{NUMINA}:size=7b", "--device=v5e", "--devices=16", "--step_rows=4"]
    arguments += ["--config.mesh.fsdp=4", "--config.mesh.sequence=4"]
    outcome = run_command(plan.main, arguments, capfd, monkeypatch)
    assert "data=1 × fsdp=4 × tensor=1 × sequence=4; 4 rows" in outcome.stdout
    assert "--config.mesh.sequence=4" in outcome.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            [
                "--device=h100",
                "--devices=8",
                "--config.mesh.sequence=2",
                "--config.model.attention=cudnn",
            ],
            ["config.model.attention='cudnn' needs whole rows", "config.mesh.sequence=2"],
        ),
        (["--devices=8"], ["--device is required"]),
        (["--device=h300"], ["h300", "h200"]),
        (["--device=h100", "--devices=6", "--config.mesh.tensor=4"], ["but there are 6 devices"]),
        (
            ["--device=h100", "--config.mesh.tensor=3", "--devices=3"],
            ["does not divide the model's", "heads"],
        ),
        (
            ["--device=h100", "--config.model.path=no/such"],
            ["config.model.path='no/such'", "Qwen/Qwen2.5-Math-7B"],
        ),
        (["--device=h100", "--config.data.max_length=8192"], ["use at most 4096"]),
    ],
)
def test_mistakes_are_told(arguments, words, capfd, monkeypatch):
    assert_refused(run_command(plan.main, [NUMINA, *arguments], capfd, monkeypatch), *words)


def test_the_planner_counts_positions_of_rows_not_of_examples():
    planner = small()
    before = planner.batch(2, 3).tokens_BL.shape
    planner.config.data.row_length = 1024
    assert (before, planner.batch(2, 3).tokens_BL.shape) == ((2, 3, 512), (2, 3, 1024))


def test_a_part_of_a_row_may_have_the_segments_of_a_whole_row():
    """Of 512 tokens, eight of 64: where the row is cut the short ones may all be in one part."""
    assert small().batch(1, 1).most_segments == 8
    assert small().batch(1, 1, ways=4).most_segments == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"data.prompt_weight": 0.1},
        {"data.weight_field": "weight"},
        {"data.train": ["a.jsonl", {"path": "b.jsonl", "weight_field": "w"}]},
        {"data.train": ["a.jsonl", {"path": "b.jsonl", "prompt_weight": 0.5}]},
    ],
)
def test_weights_of_tokens_are_part_of_the_batch(changes):
    """Of a token 17 bytes, and 4 more with its weight."""
    layout = layouts.StepLayout((1, 1, 1), "full", 3, 2)
    plain, weighed = small(), small()
    weighed.config.update_from_flattened_dict(changes)
    more = weighed.memory(layout).batch - plain.memory(layout).batch
    assert more * 2**30 == pytest.approx(4 * 2 * 3 * 512)


def test_data_whose_tokens_all_weigh_1_has_no_weights():
    planner = small()
    planner.config.data.train = ["a.jsonl", {"path": "b.jsonl", "prompt_weight": 1}]
    planner.config.data.prompt_weight = 0.0
    assert planner.batch(1, 1).weights_BL is None


def test_what_bfloat16_parameters_cost_is_said_where_they_are_used_or_proposed():
    config, short = config_lib.get_default(), {"model.param_dtype": "bfloat16"}
    other_choice = {"optimizer.moment_dtype": "bfloat16"}
    assert suggestion.bfloat16_note(config, {}) == ""
    assert suggestion.bfloat16_note(config, other_choice) == ""
    assert "take small updates by chance" in suggestion.bfloat16_note(config, short)
    config.update_from_flattened_dict(short | {"optimizer.rounding": "nearest"})
    assert "lose small updates" in suggestion.bfloat16_note(config, {})


def small_lora(rank=8, **changes):
    """`small`, with adapters on every matrix."""
    planner = small()
    planner.config.lora.rank = rank
    planner.config.update_from_flattened_dict(changes)
    return planner


def test_adapters_are_counted_to_the_byte():
    """Twice θ of moments, once of gradients; the base stays, and nothing has the shape of its own."""
    n, r, D, H, G, K, F = 6, 8, 256, 4, 2, 64, 1024
    theta = r * n * (2 * (D + H * K) + 2 * (D + G * K) + 3 * (D + F))
    layout = layouts.StepLayout((1, 1, 1), "full", 1, 2)
    planner = small_lora()
    model = planner.build((1, 1, 1))
    assert parameter_count(model.trainable) == theta
    account, full = planner.memory(layout), small().memory(layout)
    base = parameter_count(model.abstract_params)
    assert account.parameters * 2**30 == pytest.approx(4 * (base + theta) + 4)
    assert account.moments * 2**30 == pytest.approx(8 * theta + 8)
    assert account.gradients * 2**30 <= 8 * theta
    assert account.head < full.head and account.total < 0.5 * full.total


@pytest.mark.parametrize(
    "path, V, F, bias",
    [("meta-llama/Llama-3.1-70B", 128256, 28672, 0), ("Qwen/Qwen2.5-72B", 152064, 29568, 1)],
)
def test_each_of_four_devices_has_a_quarter_of_a_base_of_70b(path, V, F, bias):
    """33 GiB in bfloat16 of Llama's, 34 of Qwen's, by hand; of an adapter only the side of width D
    is cut.
    """
    n, r, D, H, G, K = 80, 8, 8192, 64, 8, 128
    config = config_lib.get_default()
    config.update_from_flattened_dict({"lora.rank": r, "model.param_dtype": "bfloat16"})
    planner = memory.Planner(config, devices.ARCHITECTURES[path], devices.described("h100"))
    model = planner.build((1, 4, 1))

    def bytes_of_one(weights):
        leaves = jax.tree.leaves(weights)
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)

    matrices = 2 * D * H * K + 2 * D * G * K + 3 * D * F
    # Norms, and the biases of q, k and v: each device has all of them.
    vectors = n * (2 * D + bias * (H + 2 * G) * K) + D
    base = 2 * ((2 * V * D + n * matrices) / 4 + vectors)
    assert bytes_of_one(model.abstract_params) == base
    assert round(base / 2**30) == {0: 33, 1: 34}[bias]
    cut, uncut = r * n * 7 * D, r * n * (2 * H * K + 2 * G * K + 3 * F)
    assert bytes_of_one(model.trainable) == 4 * (cut / 4 + uncut)


def test_an_adapter_is_told_from_a_kernel_of_its_shape():
    """At r = D, B [F, r] has the shape of `gate` [F, D]; of the two only the kernel is cut."""
    layout = layouts.StepLayout((1, 8, 1), "full", 1, 1)
    totals = []
    for rank in (256, 255):
        planner = small_lora(rank, **{"lora.targets": "mlp", "model.compute_dtype": "bfloat16"})
        totals.append(planner.memory(layout).total)
    assert totals[0] == pytest.approx(totals[1], rel=0.005)


def test_a_reference_beneath_adapters_costs_no_second_copy():
    layout = layouts.StepLayout((1, 1, 1), "full", 1, 1)
    plain = small_lora().memory(layout).parameters
    assert small_lora(objective="asft").memory(layout).parameters == plain


@pytest.mark.more
def test_what_is_saved_is_that_of_full_fine_tuning():
    """And h = A x, of width r: what B makes of it is not saved beside the kernel's product."""
    saved = {}
    for remat in ("none", "dots"):
        layout = layouts.StepLayout((1, 1, 1), remat, 4, 1)
        full = small("bfloat16", devices.described("h100"))
        adapted = dataclasses.replace(full, config=full.config.copy_and_resolve_references())
        adapted.config.lora.rank = 8
        saved[remat] = adapted.memory(layout).activations
        assert saved[remat] < 1.05 * full.memory(layout).activations
    assert saved["dots"] < saved["none"]


def test_what_dots_save_does_not_depend_on_sizes_that_are_alike():
    """A kernel with as many inputs as the rank is no B: its product is saved."""
    layout = layouts.StepLayout((1, 1, 1), "dots", 4, 1)
    kept = []
    for rank in (256, 255):
        planner = small_lora(rank, **{"lora.targets": "mlp"})
        kept.append(planner.memory(layout).activations)
    assert kept[0] == pytest.approx(kept[1], rel=0.01)


@pytest.mark.slow
def test_a_frozen_base_is_proposed_in_bfloat16():
    planner = small_lora()
    layout = layouts.StepLayout((1, 1, 1), "full", 1, 1)
    short = small_lora(**{"model.param_dtype": "bfloat16"}).memory(layout).total
    room = (short + planner.memory(layout).total) / 2
    found = suggestion.suggest(planner, 1, 1, room)
    assert found.choice == {"model.param_dtype": "bfloat16"}
    note = suggestion.bfloat16_note(planner.config, found.choice)
    assert "loses nothing of a bfloat16 checkpoint" in note


@pytest.mark.more
def test_adapters_are_proposed_where_nothing_else_fits():
    layout = layouts.StepLayout((1, 1, 1), "full", 1, 1)
    lora = small_lora(**{"model.param_dtype": "bfloat16"}).memory(layout).total
    found = suggestion.suggest(small(), 1, 1, 1.05 * lora)
    assert found.choice == {"lora.rank": 8, "model.param_dtype": "bfloat16"}
    assert "--config.lora.rank=8" in str(found)


@pytest.mark.parametrize(
    "mesh, remat, rows, accumulation",
    # Under "full" a CPU's compiler keeps more of a layer's temporaries than the account has: 8.3 %
    # of four rows of full fine-tuning, and of adapters, whose whole is smaller, 17.3 %.
    slow_but([], [SHARED, ((2, 2, 2), "none", 2, 1)], slow=[SHARED]),
)
def test_the_account_of_adapters_is_that_of_xla(mesh, remat, rows, accumulation):
    layout = layouts.StepLayout(mesh, remat, rows, accumulation)
    row = check.compare(small_lora(), layout, jax.devices())
    assert abs(float(row["error_percent"])) < 10, row
    assert abs(float(row["temporary_error_percent"])) < 15, row
