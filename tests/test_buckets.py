"""Runs in a bucket by the real command: they end as on a disk, whatever store and kills do."""

import shutil

import jax
import numpy as np
import pytest

from dft_jax import api
from dft_jax.runtime import lease
from tests.fake_bucket import Faults, Server
from tests.faults import buckets, launch, state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("buckets") / "runs"


def test_a_run_outlasts_kills_503_lost_answers_and_listings_that_lag(whole, folder):
    faults = Faults(unavailable_every=60, lost_every=7, listing_lag_s=0.5)
    rows = list(buckets.kill_chain(folder, state.summary(whole), buckets.FEW_KILLS, faults))
    assert len(rows) == len(buckets.FEW_KILLS) and all(row["landed"] for row in rows), rows
    assert all(row["ok"] for row in rows), f"{rows[0]['detail']}: {launch.log(folder / 'killed')}"


def test_a_second_job_is_refused(bucket, folder, monkeypatch):
    server, address = bucket
    monkeypatch.setattr(lease, "RENEW_S", 0.5)
    held = lease.Lease(f"{address}/run/.lock")
    environment = buckets.environment(server)
    process = launch.start(
        folder / "second",
        arguments=("--config.train.steps=2",),
        environment=environment | {launch.STALE: "90"},
        address=f"{address}/run",
    )
    assert launch.wait(process) == 2
    held.release()
    errors = [line for line in launch.log(folder / "second").splitlines() if "error: " in line]
    assert len(errors) == 1
    assert f"--workdir={address}/run: process " in errors[0] and "is at work there" in errors[0]


def test_the_model_of_a_run_in_a_bucket_is_that_of_the_run_on_a_disk(bucket, whole):
    server, address = bucket
    name = f"{address.removeprefix('gs://')}/{whole.name}"
    with server.store.lock:
        for file in (file for file in whole.rglob("*") if file.is_file()):
            server.store.put(f"{name}/{file.relative_to(whole)}", file.read_bytes())
    before = server.content(address)
    there, here = api.load(f"gs://{name}"), api.load(whole)
    assert there.identify() == here.identify()
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    assert server.content(address) == before, "who reads writes nothing"


@pytest.mark.more
def test_two_processes_write_what_they_write_on_a_disk(folder):
    disk = folder / "disk"
    for process in launch.start_many(disk, 2, {}):
        assert launch.wait(process) == 0, launch.log(disk)[-3000:]
    wanted = state.summary(disk)
    with Server() as server:
        options = {"address": buckets.ADDRESS, "environment": buckets.environment(server)}
        # Both are killed when the second checkpoint is complete, and its folder is theirs no more.
        fault = {number: launch.Fault("whole 4", "KILL") for number in (0, 1)}
        for process in launch.start_many(folder / "two", 2, fault, **options):
            launch.wait(process)
        assert server.content(f"{buckets.ADDRESS}/checkpoints/4")
        for process in launch.start_many(folder / "two", 2, {}, **options):
            assert launch.wait(process) == 0, launch.log(folder / "two")[-3000:]
        found = state.summary(buckets.copy_of(server, folder / "copy2"))
        assert found == wanted
        content = server.content(f"{buckets.ADDRESS}/checkpoints/8/state/ocdbt.process_1")
        assert content, "each process writes its shards"
    shutil.rmtree(folder / "copy2")
