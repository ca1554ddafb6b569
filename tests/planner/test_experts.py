"""Plans of experts on different devices (`mesh.expert`)."""

import dataclasses

import jax
import pytest

from dft_jax import plan
from dft_jax.models.model import parameter_count
from dft_jax.models.spec import ExpertsSpec
from dft_jax.planner import devices, layouts, memory, shares, suggestion
from experiments.planner import check
from tests.commands import ROOT, assert_refused, run_command
from tests.conftest import GOLDEN
from tests.planner.test_plan import small

GIB = 2**30
E, S, F, D, L, LAYERS = 16, 2, 512, 256, 512, 6


def with_experts(device=devices.CPU, compute="bfloat16"):
    """`small`, with sixteen experts in each layer, of which a token goes through two."""
    planner = small(compute, device)
    experts = ExpertsSpec(count=E, per_token=S, width=F, normalised=True)
    layers = planner.architecture.with_layers(feed_forward="experts")
    architecture = dataclasses.replace(layers, experts=experts, family="qwen3_moe")
    return dataclasses.replace(planner, architecture=architecture)


TPU = devices.described("v5p")


@pytest.mark.slow
def test_parameters_are_cut_and_a_layers_own_experts_are_gathered():
    planner = with_experts(TPU)
    account = {
        ways: planner.memory(layouts.StepLayout((1, 8 // ways, 1, 1, ways), "full", 1, 1))
        for ways in (1, 4)
    }
    n_params = parameter_count(planner.build((1, 1, 1)).abstract_params)
    for found in account.values():
        # All but norms are cut over eight devices, in one way or another.
        assert found.parameters == pytest.approx(4 * n_params / 8 / GIB, rel=0.01)
    # Of a layer's experts and their gradients each device has a part; tokens come to it instead.
    assert account[4].other < 0.85 * account[1].other
    assert account[1].total > account[4].total


def test_gathered_tokens_are_counted_by_hand():
    """Tokens of three other devices, the gradients of what is made of them, and their own."""
    planner, of_three = with_experts(TPU), 3 * 2 * L * D * 2
    full, none = (layouts.StepLayout((1, 2, 1, 1, 4), remat, 2, 1) for remat in ("full", "none"))
    found = {
        layout: shares.gathered_tokens(planner.config, planner.architecture, layout)
        for layout in (full, none)
    }
    assert found == {full: 3 * of_three, none: (LAYERS + 2) * of_three}
    apart = layouts.StepLayout((1, 8, 1), "none", 2, 1)
    assert shares.gathered_tokens(planner.config, planner.architecture, apart) == 0
    assert shares.gathered_tokens(planner.config, small().architecture, none) == 2 * of_three


def test_nothing_of_pairs_is_kept_where_experts_lie_apart():
    """Under `dots` three products of every pair are, where each device has all experts."""
    planner, rows = with_experts(TPU), 4
    kept = {}
    for ways in (1, 4):
        layout = layouts.StepLayout((1, 8 // ways, 1, 1, ways), "dots", rows, 1)
        gathered = shares.gathered_tokens(planner.config, planner.architecture, layout)
        kept[ways] = planner.memory(layout).activations * GIB - gathered
    of_pairs = LAYERS * rows * L * S * (2 * F + D) * 2
    assert kept[1] - kept[4] == pytest.approx(of_pairs, rel=0.02)


@pytest.mark.slow
def test_experts_are_put_on_different_devices_where_nothing_else_fits(monkeypatch):
    planner = with_experts(TPU)
    # Which `tensor` cannot cut; and no other dtypes, which are tried before.
    architecture = dataclasses.replace(planner.architecture, num_kv_heads=1)
    planner = dataclasses.replace(planner, architecture=architecture)
    monkeypatch.setattr(suggestion, "CHOICES", ({},))
    apart = layouts.StepLayout((1, 2, 1, 1, 4), "full", 1, 1)
    room = planner.memory(apart).total * 1.01
    found = suggestion.suggest(planner, 8, 8, room)
    assert found.layout.devices["expert"] > 1 and found.n_devices == 8 and found.choice == {}
    assert "--config.mesh.expert=" in str(found)
    # A device has a row at least: of fewer rows some would have none.
    assert suggestion.best_layout(planner, 8, 4, room, 1, 4) is None


def test_a_model_without_experts_is_never_told_to_place_them():
    assert suggestion._ways_to_place(small(), 8) == []
    assert suggestion._ways_to_place(with_experts(), 8) == [2, 4, 8]
    assert suggestion._ways_to_place(with_experts(), 12) == [2, 4]


NUMINA = f"--config={ROOT}/configs/numina_qwen25_math.py"
MIXTRAL = [f"--config.model.path={GOLDEN}/mixtral", "--config.data.max_length=32"]


def test_a_config_with_experts_on_different_devices_is_planned_so(capfd, monkeypatch):
    arguments = [NUMINA, *MIXTRAL, "--device=v5e", "--devices=4", "--step_rows=4"]
    arguments += ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.expert=2"]
    outcome = run_command(plan.main, arguments, capfd, monkeypatch)
    assert "data=1 × fsdp=2 × tensor=1 × expert=2; 4 rows" in outcome.stdout, outcome
    assert "--config.mesh.expert=2" in outcome.stdout.splitlines()[-1]


def test_experts_that_cannot_be_shared_out_are_refused(capfd, monkeypatch):
    arguments = [NUMINA, *MIXTRAL, "--device=h100", "--devices=3"]
    arguments += ["--config.mesh.data=1", "--config.mesh.expert=3"]
    outcome = run_command(plan.main, arguments, capfd, monkeypatch)
    assert_refused(outcome, "config.mesh.expert=3", "does not divide")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8, 1), (1, 2, 1, 1, 4)], ids=["fsdp", "expert"])
def test_the_account_of_experts_is_that_of_xla(mesh):
    """The real step for eight devices."""
    layout = layouts.StepLayout(mesh, "full", 1, 1)
    row = check.compare(with_experts(compute="float32"), layout, jax.devices())
    assert abs(float(row["error_percent"])) < 10, row


def test_a_plans_router_knows_all_experts():
    """Of the traced program: the device's own kernels, and shares of all."""
    planner = with_experts(TPU)
    model = memory._device_model(planner, memory.Cut(1, 1, 4), "full")
    leaves = {leaf.shape for leaf in jax.tree.leaves(model.abstract_params["layers"])}
    assert (LAYERS, E // 4, F, D) in leaves and (LAYERS, E, D) in leaves
