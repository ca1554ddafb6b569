"""Layers' inputs on the host, as the planner counts, proposes and explains them."""

import dataclasses

import pytest

from dft_jax import plan
from dft_jax.planner import devices, layouts, suggestion
from tests.commands import run_command
from tests.marks import slow_but
from tests.planner.test_plan import NUMINA, small

ROWS, LENGTH, WIDTH, LAYERS = 4, 512, 256, 6
INPUTS_GIB = LAYERS * ROWS * LENGTH * WIDTH * 2 / 2**30  # bfloat16


def accounts(planner, mesh=(1, 2, 1), rows=ROWS):
    """Of `full`, of `offload`, and what the latter has on the host."""
    full, offload = (layouts.StepLayout(mesh, remat, rows, 1) for remat in ("full", "offload"))
    return planner.memory(full), planner.memory(offload), planner.host_gib(offload)


@pytest.mark.parametrize("device", slow_but(["h100"], ["v6e", "h100"]))
def test_inputs_of_all_layers_leave_the_device(device):
    """All but that of one layer, which is back for its backward pass."""
    full, offload, host = accounts(small("bfloat16", devices.described(device)))
    assert full.activations == pytest.approx(INPUTS_GIB) and host == pytest.approx(INPUTS_GIB)
    back = offload.other - full.other
    assert 0 <= back * LAYERS <= INPUTS_GIB * 1.001
    assert offload == dataclasses.replace(full, activations=0.0, other=offload.other)


def test_of_cut_rows_each_device_has_its_part():
    *_, host = accounts(small("bfloat16", devices.described("v6e")), mesh=(1, 1, 1, 4))
    assert host == pytest.approx(INPUTS_GIB / 4)


def test_a_cpus_host_is_the_cpu():
    full, offload, host = accounts(small())
    assert offload == full and host == 0


@pytest.mark.slow
def test_it_is_proposed_where_nothing_cheaper_fits():
    """And before heads are cut, or moments rounded."""
    planner = small("bfloat16", devices.described("v6e"))
    full, offload, host = accounts(planner, mesh=(1, 4, 1), rows=1)
    assert offload.total < full.total
    between = suggestion.suggest(planner, 4, 4, (offload.total + full.total) / 2)
    assert between.choice == {} and between.host_gib == host
    assert between.layout == layouts.StepLayout((1, 4, 1, 1, 1), "offload", 1, 1)
    assert "--config.model.remat=offload" in str(between)
    roomy = suggestion.suggest(planner, 4, 4, full.total * 1.01)
    assert roomy.layout.remat == "full" and roomy.host_gib == 0


def test_its_cost_is_said():
    """8 GiB there and back, in each of 4 micro-batches, at 32 GB/s."""
    layout = layouts.StepLayout((1, 4, 1), "offload", 1, 4)
    found = suggestion.Suggestion({}, 4, layout, gib=20.0, host_gib=8.0)
    note = suggestion.offload_note(found, devices.host_rate("v6e"))
    for words in ("8.0 GiB a device", "2.1 s of a step", "32 GB/s"):
        assert words in note
    assert suggestion.offload_note(dataclasses.replace(found, host_gib=0.0), 32e9) == ""


@pytest.mark.slow
def test_the_table_has_the_hosts_part(capfd, monkeypatch):
    arguments = [f"{NUMINA}:size=1.5b", "--device=v6e", "--devices=8", "--step_rows=8"]
    lines = run_command(plan.main, arguments, capfd, monkeypatch).stdout.splitlines()
    [header] = [line for line in lines if line.startswith("remat")]
    assert header.split()[-5:] == ["total", "host", "GiB", "per", "device"]
    [first] = [line for line in lines if line.split()[:3] == ["offload", "1", "1"]]
    [full] = [line for line in lines if line.split()[:3] == ["full", "1", "1"]]
    n_layers, width, length = 28, 1536, 2048
    host = float(first.split()[11])
    assert host == pytest.approx(n_layers * width * length * 2 / 2**30, abs=0.005)
    assert full.split()[11] == "0.00"
    less = float(full.split()[10]) - float(first.split()[10])
    assert less == pytest.approx(host, abs=host / n_layers + 0.011)
