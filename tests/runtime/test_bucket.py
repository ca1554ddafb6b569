"""Objects, leases and copies of runs in a bucket, against a local store (tests/fake_bucket.py)."""

import hashlib
import json
import threading
import time

import pytest

from dft_jax.runtime import bucket as bucket_lib, errors, folders, lease, working_copy
from tests.fake_bucket import Faults, Trap

CONTENT = bytes(range(256)) * 40


def test_an_object_is_read_as_it_was_written(bucket):
    server, address = bucket
    bucket_lib.write(f"{address}/a/b", CONTENT)
    assert server.content(address) == {"a/b": CONTENT}
    assert bucket_lib.read(f"{address}/a/b") == CONTENT
    assert bucket_lib.exists(f"{address}/a/b") and not bucket_lib.exists(f"{address}/a")
    bucket_lib.delete(f"{address}/a/b")
    bucket_lib.delete(f"{address}/a/b")
    assert server.content(address) == {} and not bucket_lib.exists(f"{address}/a/b")
    with pytest.raises(FileNotFoundError):
        bucket_lib.read(f"{address}/a/b")


@pytest.mark.parametrize("n_bytes", [0, 1, 10, 25])
def test_size_and_hash_are_those_of_the_content(bucket, monkeypatch, n_bytes):
    _, address = bucket
    monkeypatch.setattr(bucket_lib, "_CHUNK_BYTES", 10)
    bucket_lib.write(address, CONTENT[:n_bytes])
    wanted = hashlib.sha256(CONTENT[:n_bytes]).hexdigest()
    assert bucket_lib.size_and_sha256(address) == (n_bytes, wanted)
    right = [n for n in (0, 1, 9, 10, 11, 24, 25, 26) if bucket_lib.has_size(address, n)]
    assert right == [n_bytes]


def test_a_folder_lists_what_is_below_it_and_nothing_beside(bucket):
    _, address = bucket
    names = [f"run/{n:03}" for n in range(60)] + ["run-2/a", "run.x", "run0"]
    for name in names:
        bucket_lib.write(f"{address}/{name}", b"x")
    assert bucket_lib.names(f"{address}/run") == [f"{n:03}" for n in range(60)]
    assert bucket_lib.names(address) == sorted(names)


def test_a_run_of_a_mounted_bucket_is_that_of_its_address(bucket, quick):
    """gcsfuse makes an object of each folder, with a slash at the end of its name."""
    server, address = bucket
    mounted = ["", "eval/", "eval/4/", "checkpoints/", "profile/"]
    with server.store.lock:
        for name in mounted:
            server.store.put(f"{address.removeprefix('gs://')}/{name}", b"")
    bucket_lib.write(f"{address}/eval/4/scores.json", b"{}")
    assert bucket_lib.names(address) == ["eval/4/scores.json"]
    assert bucket_lib.names(address, with_folders=True) == sorted([*mounted, "eval/4/scores.json"])
    folder = folders.run_folder(address)
    with folders.locked(folder):
        assert (folder / "eval/4/scores.json").read_text() == "{}"
    bucket_lib.path_of(address).rmtree()
    assert server.content(address) == {}


def test_a_change_is_made_only_where_nothing_was_written_since(bucket):
    _, address = bucket
    content, nothing = bucket_lib.read_with_generation(address)
    assert content is None
    assert bucket_lib.write_if(address, b"mine", nothing)
    assert not bucket_lib.write_if(address, b"yours", nothing)
    held, generation = bucket_lib.read_with_generation(address)
    assert held == b"mine"
    bucket_lib.write(address, b"again")
    assert not bucket_lib.write_if(address, None, generation)
    assert bucket_lib.read(address) == b"again"


def test_requests_are_made_again_after_503_and_lost_answers(bucket):
    server, address = bucket
    server.faults = Faults(unavailable_every=7, lost_every=3)
    for n in range(6):
        bucket_lib.write(f"{address}/{n}", str(n).encode())
    assert server.content(address) == {str(n): str(n).encode() for n in range(6)}


def test_what_cannot_be_asked_is_not_taken_for_absent(bucket, monkeypatch):
    """As fsspec would: a checkpoint without a manifest is removed."""
    server, address = bucket
    bucket_lib.write(f"{address}/8/manifest.json", b"{}")
    monkeypatch.setattr(bucket_lib, "_RETRIES", {"max_retries": 1, "initial_delay": "1ms"})
    bucket_lib._store.cache_clear()
    path = bucket_lib.path_of(f"{address}/8/manifest.json")
    server.faults = Faults(unavailable_every=1)
    for ask in (path.exists, path.is_dir, path.read_text, lambda: bucket_lib.has_size(address, 3)):
        with pytest.raises(bucket_lib.Unanswered, match="503"):
            ask()
    bucket_lib._store.cache_clear()


def test_a_listing_that_lags_behind_is_waited_for(bucket, monkeypatch):
    server, address = bucket
    server.faults = Faults(listing_lag_s=1.0)
    bucket_lib.write(f"{address}/a", b"x")
    bucket_lib.write(f"{address}/b", b"x")
    bucket_lib.delete(f"{address}/a")
    assert bucket_lib.names(address) == ["b"]
    # What another process has removed is not waited for.
    with server.store.lock:
        server.store.delete(f"{address.removeprefix('gs://')}/b")
    server.faults = Faults()
    monkeypatch.setattr(bucket_lib, "_LAG_S", 0.0)
    assert bucket_lib.names(address) == []


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "STALE_S", 1.0)
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)


def test_a_second_job_is_refused_and_the_next_let_in(bucket, quick):
    server, address = bucket
    first = lease.Lease(f"{address}/.lock")
    with pytest.raises(lease.Taken, match=r"process .* \(last seen 20"):
        lease.Lease(f"{address}/.lock")
    first.require()
    first.release()
    assert server.content(address) == {}
    began = time.monotonic()
    lease.Lease(f"{address}/.lock").release()
    assert time.monotonic() - began < lease.STALE_S / 2


def killed_lease(address):
    """A lease whose job is no more: nobody renews it, nobody releases it."""
    left = lease.Lease(address)
    left.ends.set()
    left.thread.join()
    return left


def test_the_lease_of_a_killed_job_is_taken_over_and_said(bucket, quick, capfd):
    _, address = bucket
    killed = killed_lease(f"{address}/.lock")
    began = time.monotonic()
    heir = lease.Lease(f"{address}/.lock")
    assert time.monotonic() - began >= lease.STALE_S
    said = capfd.readouterr().err
    assert "waiting up to 1 s" in said and "was not renewed for 1 s, and is taken over" in said
    # It was only stopped for a while: it may write no more.
    with pytest.raises(lease.Taken, match="process"):
        killed.require()
    heir.require()
    heir.release()


def test_of_many_that_wait_for_a_lease_one_gets_it(bucket, quick):
    _, address = bucket
    killed_lease(f"{address}/.lock")
    got, refused = [], []

    def wait():
        try:
            got.append(lease.Lease(f"{address}/.lock"))
        except lease.Taken:
            refused.append(1)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)
    got[0].release()


def test_a_lease_whose_answers_are_lost_is_held_all_the_same(bucket, quick):
    server, address = bucket
    server.faults = Faults(lost_every=1)
    held = lease.Lease(f"{address}/.lock")
    time.sleep(4 * lease.RENEW_S)
    held.require()
    assert json.loads(server.content(address)[".lock"])["word"] == held.owner["word"]
    held.release()
    assert server.content(address) == {}


def test_a_copy_follows_the_run_and_the_run_the_copy(bucket, quick):
    server, address = bucket
    bucket_lib.write(f"{address}/metrics.jsonl", b"1\n")
    bucket_lib.write(f"{address}/eval/4/scores.json", b"{}")
    bucket_lib.write(f"{address}/checkpoints/4/manifest.json", b"{}")
    bucket_lib.write(f"{address}/export/old.safetensors", b"old")
    folder = folders.run_folder(address)
    assert folders.shown(folder) == address
    assert not (folder / "checkpoints/4").exists() and not (folder / "export").exists()
    # Another job goes on meanwhile, and ends.
    bucket_lib.write(f"{address}/metrics.jsonl", b"1\n2\n")
    with folders.locked(folder) as publish:
        with open(folder / "metrics.jsonl", "a") as rows:
            assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
            rows.write("3\n")
            rows.flush()
            (folder / "eval").rename(folder / "eval.old-1")
            (folder / "config.json.tmp").write_text("half")
            publish()
        held = server.content(address)
        assert held.pop(".lock")
        assert held == {
            "metrics.jsonl": b"1\n2\n3\n",
            "eval.old-1/4/scores.json": b"{}",
            "checkpoints/4/manifest.json": b"{}",
            "export/old.safetensors": b"old",
        }
        (folder / "export").mkdir()
        (folder / "export/new.safetensors").write_bytes(b"new")
    held = server.content(address)
    assert ".lock" not in held and "export/old.safetensors" not in held
    assert held["export/new.safetensors"] == b"new"


def test_a_profile_stays_when_the_run_exports(bucket, quick):
    """The export locks the folder once more, after the training that the profile is of."""
    server, address = bucket
    folder = folders.run_folder(address)
    with folders.locked(folder):
        (folder / "profile/plugins").mkdir(parents=True)
        (folder / "profile/plugins/host.xplane.pb").write_bytes(b"steps")
    with folders.locked(folder):
        (folder / "export").mkdir()
        (folder / "export/config.json").write_text("{}")
    held = {"profile/plugins/host.xplane.pb": b"steps", "export/config.json": b"{}"}
    assert server.content(address) == held


def test_only_what_changed_is_copied(bucket, quick):
    server, address = bucket
    folder = folders.run_folder(address)
    with folders.locked(folder) as publish:
        (folder / "config.json").write_text("{}")
        (folder / "metrics.jsonl").write_text("1\n")
        publish()
        (folder / "metrics.jsonl").write_text("1\n2\n")
        seen = len(server.requests)
        publish()
    written = [name for method, name in server.requests[seen:] if method == "POST"]
    assert [name for name in written if not name.endswith(".lock")] == [
        f"{address.rpartition('/')[2]}/metrics.jsonl"
    ]


def test_a_job_that_lost_its_lease_writes_no_more(bucket, quick):
    server, address = bucket
    folder = folders.run_folder(address)
    refused = pytest.raises(errors.UserError, match="has taken over")
    with refused as raised, folders.locked(folder) as publish:
        theirs = json.dumps({"process": 1, "host": "other", "renewed": "now", "word": "x"})
        bucket_lib.write(f"{address}/.lock", theirs.encode())
        (folder / "metrics.jsonl").write_text("1\n")
        time.sleep(3 * lease.RENEW_S)
        publish()
    assert "process 1 on other" in str(raised.value)
    assert list(server.content(address)) == [".lock"]


def test_a_busy_folder_is_named_by_its_address(bucket, quick):
    _, address = bucket
    held = lease.Lease(f"{address}/.lock")
    refused = pytest.raises(folders.Busy, match=f"--workdir={address}: process .* is at work there")
    folder = folders.run_folder(address)
    with refused, folders.locked(folder):
        pass
    held.release()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("gs://my-bucket", "names no run in a bucket; give gs://BUCKET/RUN"),
        ("gs:///run", "names no run in a bucket; give gs://BUCKET/RUN"),
        ("gs://No_Bucket_/run", "the bucket cannot be used"),
        ("gs://my-bucket//run", "a part of the name is empty"),
        ("gs://my-bucket/a/../run", "a part of the name is empty, . or .."),
        ("gs://my-bucket/run#1", "--workdir=gs://my-bucket/run#1: .* with # in its path cannot"),
        ("gs://my-bucket/run?", "give one without any of . . . . #"),
        ("s3://bucket/run", "--workdir=s3://bucket/run: give a local or mounted folder"),
    ],
)
def test_no_place_for_a_run_is_refused_by_name(bucket, address, expected):
    with pytest.raises(errors.UserError, match=expected.replace("(", r"\(")):
        folders.run_folder(address)


def test_who_reads_is_told_that_no_run_is_there(bucket):
    _, address = bucket
    with pytest.raises(errors.UserError, match=f"{address}: no checkpoints of a run there"):
        folders.run_folder(address, is_new=False)


def test_a_half_minute_brings_what_was_written(bucket, quick, monkeypatch):
    server, address = bucket
    monkeypatch.setattr(working_copy, "EVERY_S", 0.2)
    folder = folders.run_folder(address)
    with folders.locked(folder):
        (folder / "metrics.jsonl").write_text("1\n")
        deadline = time.monotonic() + 10
        while "metrics.jsonl" not in server.content(address):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_an_unanswered_request_of_an_upload_is_done_or_not(bucket):
    """Of the store: a trap springs in time, and the client asks again."""
    server, address = bucket
    sprung = []
    server.trap = Trap("POST", "*/a", lambda: sprung.append(1), is_done=True)
    bucket_lib.write(f"{address}/a", b"x")
    assert sprung and server.content(address) == {"a": b"x"}
