"""Checkpoints in a bucket: what counts, what is removed, and in which order (see test_manager.py).

The store is a local one (tests/fake_bucket.py). Its content copied to a disk is the oracle: there
the same checkpoints have to be complete and undamaged.
"""

import json

import numpy as np
import pytest

from dft_jax.checkpoints import manifest
from dft_jax.checkpoints.manager import Checkpoints, Gone
from dft_jax.runtime import bucket as bucket_lib, errors, folders
from tests.checkpoints.test_manager import RUN, abstract, state, weights
from tests.fake_bucket import Faults


@pytest.fixture(scope="module")
def saved(bucket_server):
    """Steps 1, 2 and 3, of which two were to be kept: the objects by name, and all requests."""
    folder = folders.run_folder("gs://my-bucket/saved")
    seen = len(bucket_server.requests)
    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), RUN)
    return bucket_server.content("gs://my-bucket/saved/"), bucket_server.requests[seen:]


@pytest.fixture
def run(saved, bucket):
    """The store, and a run's folder with these checkpoints."""
    server, address = bucket
    put(server, address, saved[0])
    return server, address, folders.run_folder(address) / "checkpoints"


def put(server, address, content):
    with server.store.lock:
        for name, held in content.items():
            server.store.put(f"{address.removeprefix('gs://')}/{name}", held)


def steps(server, address):
    """The folders of checkpoints, in order."""
    return sorted({name.split("/")[1] for name in server.content(address)})


def change_array(server, address, step):
    """A bit of the file that holds the array."""
    content = server.content(f"{address}/checkpoints/{step}")
    name = max(content, key=lambda name: len(content[name]))
    changed = bytearray(content[name])
    changed[len(changed) // 2] ^= 1
    put(server, address, {f"checkpoints/{step}/{name}": bytes(changed)})


def test_the_newest_are_kept_and_restored(run):
    server, address, folder = run
    assert steps(server, address) == ["2", "3"]
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest(repair=True) == 3 and checkpoints.run_of(3) == RUN
        np.testing.assert_array_equal(checkpoints.restore(3, abstract()).params["w"], weights(3))
        params = checkpoints.restore_params(2, abstract().params)
        np.testing.assert_array_equal(params["w"], weights(2))
    assert steps(server, address) == ["2", "3"]


def test_a_disk_takes_what_was_in_the_bucket(saved, tmp_path):
    for name, content in saved[0].items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.newest(repair=True) == 3
        np.testing.assert_array_equal(checkpoints.restore(3, abstract()).params["w"], weights(3))
    there = {path.name for path in (tmp_path / "checkpoints/3").rglob("*") if path.is_file()}
    assert "manifest.ocdbt" in there, "Orbax has joined what the processes wrote"


def test_the_manifest_comes_last_and_goes_first(saved):
    of_1 = []
    for method, name in saved[1]:
        if name.startswith("saved/checkpoints/1/") and method != "GET":
            of_1.append((method, name.removeprefix("saved/checkpoints/1/")))
    # Orbax deletes some of its own objects before it writes them.
    came, went = of_1.index(("POST", manifest.NAME)), of_1.index(("DELETE", manifest.NAME))
    assert {name for method, name in of_1[: came + 1] if method == "POST"} == {
        name for method, name in of_1[went:]
    }
    assert went == came + 1, "nothing is written or deleted between"


def test_folders_that_are_objects_go_with_their_checkpoint(run):
    """As gcsfuse makes them: a mount would show them as steps without a manifest."""
    server, address, folder = run
    made = ["", "2/", "2/state/", "3/", "3/state/", "4/", "4/run/"]
    put(server, address, {f"checkpoints/{name}": b"" for name in made})
    with Checkpoints(folder, keep=1) as checkpoints:
        assert checkpoints.newest(repair=True) == 3
        checkpoints.save(4, state(4), RUN)
        checkpoints.wait()
        assert checkpoints.newest() == 4
    held = {
        name
        for name in server.content(address)
        if name.startswith(("checkpoints/2", "checkpoints/3"))
    }
    assert held == set()
    files = json.loads(server.content(address)["checkpoints/4/manifest.json"])["files"]
    assert not [name for name in files if name.endswith("/")]


def test_an_unfinished_step_does_not_count_and_goes(run, capfd):
    server, address, folder = run
    bucket_lib.delete(f"{address}/checkpoints/3/{manifest.NAME}")
    with Checkpoints(folder) as reader:
        assert reader.newest() == 2 and steps(server, address) == ["2", "3"]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.newest(repair=True) == 2
        assert "3 has no manifest.json" in capfd.readouterr().err
        assert steps(server, address) == ["2"]
        # The place is free again.
        checkpoints.save(3, state(3), RUN)
        checkpoints.wait()
        assert checkpoints.newest() == 3


def test_all_there_is_is_kept_for_a_look(run):
    server, address, folder = run
    before = server.content(f"{address}/checkpoints/3")
    for name in (f"3/{manifest.NAME}", *(f"2/{name}" for name in before)):
        bucket_lib.delete(f"{address}/checkpoints/{name}")
    for name in server.content(f"{address}/checkpoints/2"):
        bucket_lib.delete(f"{address}/checkpoints/2/{name}")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.newest(repair=True) is None
    assert steps(server, address) == ["3.unfinished"]
    del before[manifest.NAME]
    assert server.content(f"{address}/checkpoints/3.unfinished") == before


def test_a_damaged_one_is_set_aside_with_its_size(run, capfd):
    server, address, folder = run
    change_array(server, address, 3)
    before = server.content(f"{address}/checkpoints/3")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.newest(repair=True) == 2
        assert "set aside as 3.damaged" in capfd.readouterr().err
        assert server.content(f"{address}/checkpoints/3.damaged") == before
        assert steps(server, address) == ["2", "3.damaged"]
        size = sum(len(content) for name, content in before.items() if name != manifest.NAME)
        assert checkpoints.damaged_notes()[0].startswith(
            f"note: {address}/checkpoints/3.damaged ({size / 1000:.3g} kB) differed"
        )


@pytest.mark.parametrize(
    ("cut", "expected"), [(-1, "has not 4 bytes"), (None, "is missing")], ids=["short", "missing"]
)
def test_an_object_that_was_lost_is_found_by_its_size(run, cut, expected, capfd):
    server, address, folder = run
    name = "checkpoints/3/run/metadata"
    size = len(server.content(address)[name])
    if cut is None:
        bucket_lib.delete(f"{address}/{name}")
    else:
        put(server, address, {name: server.content(address)[name][:cut]})
    with Checkpoints(folder, verify="sizes") as checkpoints:
        assert checkpoints.newest() == 2
    assert f"run/metadata {expected.replace('4', str(size))}" in capfd.readouterr().err


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_no_damage(run, monkeypatch):
    server, address, folder = run
    monkeypatch.setattr(bucket_lib, "_RETRIES", {"max_retries": 1, "initial_delay": "1ms"})
    bucket_lib._store.cache_clear()
    with Checkpoints(folder, keep=2) as checkpoints:
        server.requests.clear()
        assert checkpoints.newest(repair=True) == 3
        n_requests = len(server.requests)
        n_failed = 0
        # An outage of two requests, after which all is well: one and its only repetition, or two
        # of files that are hashed at a time, which are repeated.
        for first in range(1, n_requests):
            server.requests.clear()
            server.faults = Faults(down=range(first, first + 2))
            try:
                assert checkpoints.newest(repair=True) == 3
            except errors.UserError as error:
                assert "cannot be used" in str(error) and "503" in str(error)
                n_failed += 1
            assert steps(server, address) == ["2", "3"]
        assert n_failed > n_requests / 2 > 10
    bucket_lib._store.cache_clear()


def test_a_reader_is_told_that_the_run_has_let_a_checkpoint_go(run):
    _, address, folder = run
    with Checkpoints(folder) as reader:
        assert reader.newest() == 3
        for name in bucket_lib.names(f"{address}/checkpoints/3"):
            bucket_lib.delete(f"{address}/checkpoints/3/{name}")
        with pytest.raises(Gone, match="gs://.*3: is gone"):
            reader.restore(3, abstract())
