"""Programs compiled ahead of time: what is read from their text, on small texts whose numbers are
worked out by hand, and the compilers themselves where they are installed.
"""

import dataclasses
import json
import subprocess
import sys

import pytest

from experiments.performance import gpu_process, hlo

CHIP = hlo.Chip(bf16=1e9, f32=1e8, memory=1e6, link=1e6, network=1e3)


def only(text: str, **more) -> hlo.Executed:
    [step] = hlo.executed(text, CHIP, **more)
    return step


def entry(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule jit_f, is_scheduled=true\n\n{before}ENTRY %main.1 (p: f32[2]) -> f32[2] {{\n{body}\n}}\n"


def test_a_product_and_its_bytes():
    step = only(
        entry(
            "%a = bf16[4,8]{1,0} parameter(0)",
            "%b = bf16[16,8]{1,0} parameter(1)",
            "ROOT %dot.1 = f32[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
        )
    )
    assert step.kind == "gemm" and step.flops == 2 * 4 * 16 * 8
    assert step.n_bytes == 2 * 4 * 8 + 2 * 16 * 8 + 4 * 4 * 16
    assert step.seconds == max(step.flops / 1e9, step.n_bytes / 1e6)


def test_a_call_of_cublas_with_its_workspace():
    step = only(
        entry(
            "%a = f32[4,8]{1,0} parameter(0)",
            "%b = f32[8,16]{1,0} parameter(1)",
            'ROOT %custom-call.3.remat = (f32[4,16]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul",'
            ' backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
        )
    )
    assert step.kind == "gemm" and step.flops == 2 * 4 * 16 * 8


def test_recomputed_products_are_those_that_xla_names_so():
    text = entry(
        "%a = f32[4,4]{1,0} parameter(0)",
        "%dot.1 = f32[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "%add.remat = f32[4,4]{1,0} add(%dot.1, %a)",
        "ROOT %dot.1.remat2 = f32[4,4]{1,0} dot(%a, %add.remat), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    )
    found = hlo.facts(text, CHIP)
    assert (found["gemms"], found["recomputed_gemms"]) == (2, 1)


LOOP = """%body (carried: (s32[], f32[8])) -> (s32[], f32[8]) {
  %carried = (s32[], f32[8]{0}) parameter(0)
  %number = s32[] get-tuple-element(%carried), index=0
  %one = s32[] constant(STEP)
  %next = s32[] add(%number, %one)
  %value = f32[8]{0} get-tuple-element(%carried), index=1
  %twice = f32[8]{0} negate(%value)
  ROOT %pair = (s32[], f32[8]{0}) tuple(%next, %twice)
}

%condition (carried.1: (s32[], f32[8])) -> pred[] {
  %carried.1 = (s32[], f32[8]{0}) parameter(0)
  %number.1 = s32[] get-tuple-element(%carried.1), index=0
  %bound = s32[] BOUND
  ROOT %less = pred[] compare(%number.1, %bound), direction=LT
}

"""
WHILE = "ROOT %loop = (s32[], f32[8]{0}) while(%p), condition=%condition, body=%body"


def runs(text: str, **more) -> float:
    steps = hlo.executed(text, CHIP, **more)
    return next(step.times for step in steps if step.instruction.name == "twice")


@pytest.mark.parametrize(
    "step, bound, about, times",
    [
        (1, "constant(28)", "", 28),
        (2, "constant(28)", "", 14),  # XLA has unrolled it by two
        (1, "constant(28)", ', backend_config={"known_trip_count":{"n":"7"}}', 7),
        (1, "get-tuple-element(%carried.1), index=0", "", 5),  # of unknown length
    ],
)
def test_loops_run_as_often_as_they_do(step, bound, about, times):
    loop = LOOP.replace("STEP", str(step)).replace("BOUND", bound)
    text = entry("%p = (s32[], f32[8]{0}) parameter(0)", WHILE + about, before=loop)
    assert runs(text, unknown_trips=5) == times


def test_a_loop_whose_first_trip_is_before_it():
    text = entry(
        "%x = f32[8]{0} parameter(0)",
        "%one.0 = s32[] constant(1)",
        "%begin = s32[] copy(%one.0)",
        "%p = (s32[], f32[8]{0}) tuple(%begin, %x)",
        WHILE,
        before=LOOP.replace("STEP", "1").replace("BOUND", "constant(28)"),
    )
    assert runs(text) == 27


def test_a_body_that_counts_in_several_steps_and_not_first():
    loop = LOOP.replace("STEP", "1").replace("BOUND", "constant(8)")
    loop = loop.replace(
        "%next = s32[] add(%number, %one)",
        "%half = s32[] add(%number, %one)\n  %next = s32[] add(%half, %one)",
    )
    loop = loop.replace("(s32[], f32[8])", "(f32[8], s32[])").replace(
        "(s32[], f32[8]{0})", "(f32[8]{0}, s32[])"
    )
    loop = (
        loop.replace("index=0", "index=9")
        .replace("index=1", "index=0")
        .replace("index=9", "index=1")
    )
    loop = loop.replace("tuple(%next, %twice)", "tuple(%twice, %next)")
    text = entry(
        "%p = (f32[8]{0}, s32[]) parameter(0)",
        WHILE.replace("(s32[], f32[8]{0})", "(f32[8]{0}, s32[])"),
        before=loop,
    )
    assert runs(text) == 4


def test_the_cheaper_branch_is_what_runs():
    branches = """%cheap (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %one = f32[8]{0} negate(%x)
}

%dear (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  %once = f32[8]{0} negate(%y)
  ROOT %again = f32[8]{0} negate(%once)
}

"""
    for names in (
        "true_computation=%dear, false_computation=%cheap",
        "branch_computations={%cheap, %dear}",
    ):
        lines = (
            "%p = f32[8]{0} parameter(0)",
            "%q = s32[] parameter(1)",
            f"ROOT %choice = f32[8]{{0}} conditional(%q, %p, %p), {names}",
        )
        assert only(entry(*lines, before=branches)).instruction.name == "one"


FUSION = """%fused (stack: f32[28,100], at: s32[], update: f32[1,100]) -> f32[28,100] {
  %stack = f32[28,100]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %update = f32[1,100]{1,0} parameter(2)
  %zero = s32[] constant(0)
  RESULT
}

"""


@pytest.mark.parametrize(
    "result, n_bytes",
    [
        # a slice: what is sliced off, read and written
        (
            "ROOT %s = f32[1,100]{1,0} dynamic-slice(%stack, %at, %zero), dynamic_slice_sizes={1,100}",
            400 + 400,
        ),
        # an update in place: only what is new
        (
            "ROOT %u = f32[28,100]{1,0} dynamic-update-slice(%stack, %update, %at, %zero)",
            400 + 4 + 400,
        ),
        # all of it
        ("ROOT %n = f32[28,100]{1,0} negate(%stack)", 11_200 + 11_200),
    ],
)
def test_a_fusion_moves_what_it_looks_at(result, n_bytes):
    kind = result.split(" = ")[1].split("{")[0]
    lines = (
        "%stack.1 = f32[28,100]{1,0} parameter(0)",
        "%at.1 = s32[] parameter(1)",
        "%update.1 = f32[1,100]{1,0} parameter(2)",
        f"ROOT %fusion = {kind}{{1,0}} fusion(%stack.1, %at.1, %update.1), kind=kLoop, calls=%fused",
    )
    step = only(entry(*lines, before=FUSION.replace("RESULT", result)))
    # the place is read by those that use it
    assert step.n_bytes in (n_bytes, n_bytes + 4)


def test_the_start_of_a_fusion_moves_what_the_fusion_does():
    result = "ROOT %u = f32[28,100]{1,0} dynamic-update-slice(%stack, %update, %at, %zero)"
    types = "f32[28,100]{1,0}, s32[], f32[1,100]{1,0}"
    lines = (
        "%stack.1 = f32[28,100]{1,0} parameter(0)",
        "%at.1 = s32[] parameter(1)",
        "%update.1 = f32[1,100]{1,0} parameter(2)",
        f"%start = (({types}), f32[28,100]{{1,0}}, s32[]) fusion-start(%stack.1, %at.1, %update.1), kind=kLoop, calls=%fused",
        "ROOT %done = f32[28,100]{1,0} fusion-done(%start)",
    )
    assert only(entry(*lines, before=FUSION.replace("RESULT", result))).n_bytes == 400 + 4 + 400


def test_memory_of_the_core_costs_no_bandwidth():
    near = "f32[8]{0:T(128)S(1)}"
    assert only(entry(f"%a = {near} parameter(0)", f"ROOT %b = {near} copy-of(%a)")).n_bytes == 0


HOST = "bf16[12,4,8]{2,1,0:T(8,128)(2,1)S(5)}"


def test_copies_to_the_host_and_back():
    """A layer's slice of what lies there: as XLA:TPU starts them, and ends them later."""
    slice_of = "bf16[1,4,8]{2,1,0:T(8,128)(2,1)}"
    text = entry(
        "%at = s32[] parameter(0)",
        f"%x = {slice_of} parameter(1)",
        f'%room = {HOST} custom-call(), custom_call_target="AllocateBuffer"',
        f"%s = (({HOST}, {slice_of}, s32[], s32[], s32[]), {HOST}, u32[]{{:S(2)}})"
        " dynamic-update-slice-start(%room, %x, %at, %at, %at)",
        f"%there = {HOST} dynamic-update-slice-done(%s)",
        f"%b = (({HOST}, s32[], s32[], s32[]), {slice_of}, u32[]{{:S(2)}})"
        " dynamic-slice-start(%there, %at, %at, %at), dynamic_slice_sizes={1,4,8}",
        f"ROOT %back = {slice_of} dynamic-slice-done(%b)",
    )
    found = hlo.facts(text, dataclasses.replace(CHIP, host=1e3))
    assert found["host_gb"] * 1e9 == pytest.approx(2 * 4 * 8 * 2)
    assert found["host_ms"] == pytest.approx(2 * 4 * 8 * 2)
    assert found["gb"] == 0  # the device's memory is faster than the way to the host


def test_collectives_by_kind_and_bytes():
    text = entry(
        "%a = f32[4,8]{1,0} parameter(0)",
        "%g = f32[32,8]{1,0} all-gather(%a), replica_groups=[1,8]<=[8], dimensions={0}",
        "%s = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%a), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}",
        "%d = f32[32,8]{1,0} all-gather-done(%s)",
        "%r = f32[4,8]{1,0} all-reduce(%a), replica_groups={{0,1},{2,3}}, to_apply=%add",
        "ROOT %p = f32[4,8]{1,0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}",
    )
    found = hlo.facts(text, CHIP)
    assert found["collectives"] == (
        "2 all-gather (2 runs, 2.05e-06 GB); 1 all-reduce (1 runs, 1.28e-07 GB);"
        " 1 collective-permute (1 runs, 1.28e-07 GB)"
    )
    ring = 2 * 1024 * 7 / 8 + 2 * 128 / 2 + 128  # around a ring, and around it twice
    assert found["collective_ms"] == pytest.approx(1e3 * ring / 1e6)
    assert found["gb"] == 0  # they are not counted as traffic of memory too


@pytest.mark.parametrize(
    "groups, members",
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[2,8]<=[16]", 8),
        ("[4,16]<=[4,4,4]T(1,0,2)", 16),
        ("mesh['axis_0'=1,'axis_1'=64] {'axis_1'}", 64),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=16] {'axis_0','axis_2'}", 64),
        ("mesh['a'=4,'b'=16], device_ids=([64]) {'b'}", 16),
        ("mesh['a'=4,'b'=16] {'b':(2)8}", 8),
    ],
)
def test_the_devices_of_a_collective_are_counted_however_they_are_written(groups, members):
    text = entry(
        "%a = f32[256]{0} parameter(0)",
        f"ROOT %g = f32[1024]{{0}} all-gather(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}",
    )
    assert only(text).seconds == pytest.approx(4096 * (members - 1) / members / CHIP.link)


def test_devices_that_are_written_in_another_way_are_not_guessed():
    text = entry(
        "%a = f32[256]{0} parameter(0)",
        "ROOT %g = f32[1024]{0} all-gather(%a), channel_id=1, replica_groups=v9<8>, dimensions={0}",
    )
    with pytest.raises(ValueError, match="v9<8>"):
        hlo.executed(text, CHIP)


def sent(kind: str) -> str:
    about = 'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    about += f'_xla_megascale_target="{{1,2,3}}x{{0:7}}",_xla_megascale_transfer_type="{kind}"}}'
    return entry(
        "%a = f32[4,8]{1,0} parameter(0)",
        "%t = token[] after-all()",
        f"%s = (f32[4,8]{{1,0}}, u32[]{{:S(2)}}, token[]) send(%a, %t), channel_id=2, {about}",
        f"%d = token[] send-done(%s), channel_id=2, {about}",
        f"%r = (f32[4,8]{{1,0}}, u32[]{{:S(2)}}, token[]) recv(%t), channel_id=1, {about}",
        f"%e = (f32[4,8]{{1,0}}, token[]) recv-done(%r), channel_id=1, {about}",
        "ROOT %g = f32[4,8]{1,0} get-tuple-element(%e), index=0",
    )


def test_sums_across_slices_go_over_the_network():
    found = hlo.facts(sent("ALL_REDUCE"), CHIP)
    assert found["collectives"] == "1 sum across slices (1 runs, 1.28e-07 GB)"
    assert found["network_ms"] == pytest.approx(1e3 * 2 * 128 * 2 / 3 / 1e3)
    assert found["collective_ms"] == 0


def test_what_else_goes_between_slices_is_not_guessed():
    with pytest.raises(ValueError, match="ALL_TO_ALL"):
        hlo.executed(sent("ALL_TO_ALL"), CHIP)


def test_a_computation_may_end_with_the_name_of_its_thread():
    before = """%other (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}, execution_thread="sparsecore"

"""
    step = only(
        entry("%p = f32[8]{0} parameter(0)", "ROOT %n = f32[8]{0} negate(%p)", before=before)
    )
    assert step.instruction.name == "n"


def test_what_a_collective_sends_from_the_core_counts():
    near, pair = "f32[4,8]{1,0:T(8,128)S(1)}", "replica_groups={{0,1}}, to_apply=%add"
    text = entry(f"%a = {near} parameter(0)", f"ROOT %r = {near} all-reduce(%a), {pair}")
    assert only(text).n_bytes == 128


def test_recomputed_products_count_in_every_branch():
    branches = """%cheap (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  ROOT %one = f32[8,8]{1,0} negate(%x)
}

%dear (y: f32[8,8]) -> f32[8,8] {
  %y = f32[8,8]{1,0} parameter(0)
  ROOT %dot.remat = f32[8,8]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

"""
    lines = (
        "%p = f32[8,8]{1,0} parameter(0)",
        "%q = s32[] parameter(1)",
        "ROOT %choice = f32[8,8]{1,0} conditional(%q, %p, %p), branch_computations={%cheap, %dear}",
    )
    found = hlo.facts(entry(*lines, before=branches), CHIP)
    assert (found["gemms"], found["recomputed_gemms"], found["tflop"]) == (1, 1, 0)


def test_a_collective_inside_of_a_fusion_counts():
    inside = """%scattered (x: f32[8]) -> f32[2] {
  %x = f32[8]{0} parameter(0)
  ROOT %rs = f32[2]{0} reduce-scatter(%x), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
}

"""
    lines = (
        "%p = f32[8]{0} parameter(0)",
        "ROOT %f = f32[2]{0} fusion(%p), kind=kCustom, calls=%scattered",
    )
    found = hlo.facts(entry(*lines, before=inside), CHIP)
    assert found["collectives"] == "1 reduce-scatter (1 runs, 3.2e-08 GB)"


def test_convolutions_of_a_tpu_are_products():
    # a plain one: [128, 64] · [512, 64]
    plain = only(
        entry(
            "%a = bf16[128,64]{1,0} parameter(0)",
            "%b = bf16[512,64]{1,0} parameter(1)",
            "ROOT %c = f32[128,512]{1,0} convolution(%a, %b), dim_labels=bf_oi->bf",
        )
    )
    assert plain.flops == 2 * 128 * 64 * 512
    # heads as a window that sees one input each: [128, 64] · [4, 16, 64] -> [128, 4, 16]
    heads = only(
        entry(
            "%a = bf16[128,64,1]{1,0,2} parameter(0)",
            "%b = bf16[4,16,64]{2,1,0} parameter(1)",
            "ROOT %c = bf16[128,4,16]{2,1,0} convolution(%a, %b), window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_0oi->b0f",
        )
    )
    assert heads.flops == 2 * 128 * 64 * 4 * 16
    # heads summed over: [128, 4, 16] · [4, 64, 16] -> [128, 64]
    summed = only(
        entry(
            "%a = bf16[128,4,16]{2,1,0} parameter(0)",
            "%b = bf16[4,64,16]{2,1,0} parameter(1)",
            "ROOT %c = bf16[128,64,1]{1,0,2} convolution(%a, %b), window={size=4}, dim_labels=b0f_0oi->bf0",
        )
    )
    assert summed.flops == 2 * 128 * 4 * 16 * 64


@pytest.mark.parametrize(
    "name, target, shape, n_products",
    [
        ("cudnn.1", "__cudnn$fmhaSoftmax", "bf16[2,64,4,16]", 2),
        ("cudnn.2", "__cudnn$fmhaSoftmaxBackward", "bf16[2,64,4,16]", 5),
        ("splash_mha_fwd_residuals.1", "tpu_custom_call", "bf16[2,4,64,16]", 2),
        ("splash_mha_dq_no_residuals.1", "tpu_custom_call", "bf16[2,4,64,16]", 3),
        ("splash_mha_dkv_no_residuals.1", "tpu_custom_call", "bf16[2,4,64,16]", 4),
    ],
)
@pytest.mark.parametrize("n_keys", [64, 256])  # of whole rows, and where a device has a quarter
def test_kernels_of_attention(name, target, shape, n_products, n_keys):
    keys = shape.replace("64", str(n_keys))
    step = only(
        entry(
            "%mask = s8[1,1,1]{2,1,0} parameter(0)",
            f"%q = {shape}{{3,2,1,0}} parameter(1)",
            f"%k = {keys}{{3,2,1,0}} parameter(2)",
            f'ROOT %{name} = {shape}{{3,2,1,0}} custom-call(%mask, %q, %k), custom_call_target="{target}", backend_config={{',
            '"settings":"on lines',
            'of their own"',
        )
    )
    # half of 2 · B · H · queries · keys · K for each
    assert step.kind == "attention" and step.flops == n_products * 2 * 4 * 64 * n_keys * 16


@pytest.mark.parametrize(
    "one, other, result",
    [
        ("bf16[96,16]{1,0}", "bf16[8,32,16]{2,1,0}", "bf16[96,32]{1,0}"),
        ("bf16[96,32]{1,0}", "bf16[96,16]{1,0}", "bf16[8,32,16]{2,1,0}"),
    ],
)
def test_a_row_meets_one_experts_matrix(one, other, result):
    """Of 8: forward, and the gradient of the matrices."""
    step = only(
        entry(
            "%sizes = s32[8]{0} parameter(0)",
            f"%a = {one} parameter(1)",
            f"%b = {other} parameter(2)",
            f'ROOT %ragged-dot-none.3 = {result} custom-call(%sizes, %a, %b), custom_call_target="tpu_custom_call"',
        )
    )
    assert step.kind == "gemm" and step.flops == 2 * 96 * 16 * 32


def compiled(*words: str) -> dict:
    command = [sys.executable, "-m", "experiments.performance.aot", "--tiny", *words]
    done = subprocess.run(
        command, cwd=gpu_process.ROOT, env=gpu_process.with_root(), capture_output=True, text=True
    )
    if "no compiler for" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_a_training_step_for_an_h100():
    found = compiled("train_1.5b", "1.5b", "8", "none", "1", "--device=h100")
    # forward and backward of each layer, in two loops
    assert found["attention"] == "cudnn" and found["attention_calls"] == 2
    assert found["recomputed_gemms"] == 0 and found["tflop"] > 0 and found["collectives"] == ""


@pytest.mark.slow
def test_a_training_step_for_eight_tpus():
    found = compiled("train_1.5b", "1.5b", "1", "full", "1", "--device=v5e:2x4", "--mesh=1x8x1")
    # forward, forward again, and two kernels backward
    assert found["attention"] == "splash" and found["attention_calls"] == 4
    assert "all-gather" in found["collectives"]
