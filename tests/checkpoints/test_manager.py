"""Checkpoints: only complete ones count; what is damaged, partial or another run's is named."""

import collections
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.checkpoints import manager, manifest
from dft_jax.checkpoints.manager import Checkpoints, Gone
from dft_jax.runtime import distributed, errors, files, folders
from dft_jax.types import TrainState
from tests.faults import launch

RUN = {"fingerprint": {"seed": 0}, "changes": []}


def weights(step):
    return jax.random.normal(jax.random.key(step), (64, 64))


def state(step):
    return TrainState(jnp.int32(step), {"w": weights(step)}, ())


def abstract(dtype=jnp.float32, shape=(64, 64)):
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=layout)
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=layout), {"w": leaf}, ())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1, 2 and 3, of which two were to be kept."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), RUN)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def flip_bit(folder):
    """In the largest file, which holds the array."""
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_newest_are_kept_and_restored(folder):
    assert names(folder) == ["2", "3"]
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest(repair=True) == 3 and checkpoints.run_of(3) == RUN
        np.testing.assert_array_equal(checkpoints.restore(3, abstract()).params["w"], weights(3))
        np.testing.assert_array_equal(
            checkpoints.restore_params(2, abstract().params)["w"], weights(2)
        )
    assert names(folder) == ["2", "3"]


def test_a_reader_moves_nothing_a_run_sets_aside(folder, capfd):
    flip_bit(folder / "3")
    assert Checkpoints(folder).newest() == 2 and names(folder) == ["2", "3"]
    assert "3 is damaged and left out" in capfd.readouterr().err
    assert Checkpoints(folder).newest(repair=True) == 2 and names(folder) == ["2", "3.damaged"]
    assert "set aside as 3.damaged" in capfd.readouterr().err


def test_quarantined_checkpoints_are_reported_with_their_size(folder, monkeypatch):
    """Nothing removes them, so somebody has to be told that they are there."""
    assert Checkpoints(folder).damaged_notes() == []
    flip_bit(folder / "3")
    checkpoints = Checkpoints(folder)
    checkpoints.newest(repair=True)
    size = sum(file.stat().st_size for file in (folder / "3.damaged").rglob("*") if file.is_file())
    assert 16_000 < size < 999_000, "64 · 64 numbers of four bytes, and what describes them"
    remedy = "differed from its manifest and is not used; remove it when you have looked"
    place = f"{folder}/3.damaged ({size / 1000:.3g} kB)"
    assert checkpoints.damaged_notes() == [f"note: {place} {remedy}"]
    (folder / "10.damaged").mkdir()
    assert [note.split(" ")[1] for note in checkpoints.damaged_notes()] == [
        f"{folder}/3.damaged",
        f"{folder}/10.damaged",
    ]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert checkpoints.damaged_notes() == []


def test_none_that_is_good_is_not_a_new_start(folder):
    for step in ("2", "3"):
        flip_bit(folder / step)
    with pytest.raises(
        errors.UserError, match="no good checkpoint is left; put one back, or train again"
    ):
        Checkpoints(folder).newest()
    with pytest.raises(
        errors.UserError, match="no good checkpoint is left; put one back, or remove the folder"
    ):
        Checkpoints(folder).newest(repair=True)
    with pytest.raises(errors.UserError, match="no good checkpoint is left"):  # nor the next time
        Checkpoints(folder).newest(repair=True)


@pytest.mark.parametrize("verify, finds", [("sha256", True), ("sizes", False), ("off", False)])
def test_what_each_kind_of_verification_finds_of_a_flipped_bit(verify, finds, folder):
    flip_bit(folder / "3")
    assert Checkpoints(folder, verify=verify).newest() == (2 if finds else 3)


@pytest.mark.parametrize("verify, finds", [("sha256", True), ("sizes", True), ("off", False)])
def test_what_each_kind_of_verification_finds_of_a_missing_file(verify, finds, folder):
    max(
        (f for f in (folder / "3").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    ).unlink()
    assert Checkpoints(folder, verify=verify).newest() == (2 if finds else 3)


def test_an_unfinished_step_does_not_count(folder, capfd):
    (folder / "3" / manifest.NAME).unlink()
    (folder / "4.orbax-checkpoint-tmp-1").mkdir()
    (folder / "1.removed").mkdir()
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest(repair=True) == 2
        assert names(folder) == ["2"] and "its save was never completed" in capfd.readouterr().err
        checkpoints.save(3, state(3), RUN)
    assert names(folder) == ["2", "3"]


def test_what_a_killed_run_did_not_get_to_remove_goes_at_the_next_start(folder):
    shutil.copytree(folder / "2", folder / "1")
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest() == 3 and names(folder) == ["1", "2", "3"]
        assert checkpoints.newest(repair=True) == 3 and names(folder) == ["2", "3"]


def test_nothing_saved_yet_is_a_beginning(tmp_path):
    assert Checkpoints(tmp_path).newest(repair=True) is None
    (tmp_path / "2").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest(repair=True) is None and names(tmp_path) == ["2.unfinished"]
        checkpoints.save(2, state(2), RUN)
    assert names(tmp_path) == ["2"]


def test_several_without_a_manifest_are_not_a_killed_run(folder):
    for step in ("2", "3"):
        (folder / step / manifest.NAME).unlink()
    with pytest.raises(errors.UserError, match="no good checkpoint is left"):
        Checkpoints(folder).newest(repair=True)
    assert names(folder) == ["2", "3"]


def test_a_reader_meets_a_run_that_lets_a_checkpoint_go(folder, monkeypatch):
    """The newest that was listed is gone by the time it is read, and there is a newer one."""
    original, moved = manifest.problems, []

    def problems(path, step, verify):
        if not moved:
            moved.append((folder / "3").rename(folder / "3.removed"))
            shutil.copytree(folder / "3.removed", folder / "4")
            text = (folder / "4" / manifest.NAME).read_text().replace('"step": 3', '"step": 4')
            (folder / "4" / manifest.NAME).write_text(text)
        return original(path, step, verify)

    monkeypatch.setattr(manifest, "problems", problems)
    assert Checkpoints(folder).newest() == 4


@pytest.mark.parametrize("at", ["before", "meanwhile"])
def test_what_a_run_has_let_go_is_said_to_be_gone(at, folder, monkeypatch):
    """Read in part it would pass for complete. Nobody is told to remove a working run's files."""
    checkpoints = Checkpoints(folder)
    step = checkpoints.newest()
    original = checkpoints.orbax.restore

    def restore(path, **options):
        found = original(path, **options)
        path.rename(folder / "3.removed")
        return found

    if at == "before":
        (folder / "3").rename(folder / "3.removed")
        with pytest.raises(Gone):
            checkpoints.digest(step)
    else:
        monkeypatch.setattr(checkpoints.orbax, "restore", restore)
    with pytest.raises(Gone, match="3: is gone, .*; run the same command again") as error:
        checkpoints.run_of(step)
    assert "remove" not in str(error.value)


def test_only_the_run_itself_is_told_to_remove_what_cannot_be_read(folder):
    (folder / "3" / "run" / "metadata").unlink()
    reader, run = (Checkpoints(folder, verify="off") for _ in range(2))
    run.newest(repair=True)
    with pytest.raises(errors.UserError, match="cannot be read .* sets it aside"):
        reader.run_of(3)
    with pytest.raises(errors.UserError, match="cannot be read .* remove that folder to resume"):
        run.run_of(3)


def test_a_checkpoints_digest_is_that_of_its_files_without_reading_them(folder):
    saved = [file for file in (folder / "3").rglob("*") if file.is_file()]
    whole = files.digest(saved)
    assert Checkpoints(folder).digest(3) == whole != Checkpoints(folder).digest(2)
    flip_bit(folder / "3")
    assert Checkpoints(folder).digest(3) == whole != files.digest(saved)


def test_nothing_has_no_digest(folder):
    """It would be one identity for all checkpoints that are gone."""
    with pytest.raises(ValueError, match="no files"):
        files.digest([])
    manifest_of_nothing = {"step": 3, "files": {}}
    (folder / "3" / manifest.NAME).write_text(json.dumps(manifest_of_nothing))
    with pytest.raises(errors.UserError, match="names no file"):
        Checkpoints(folder).digest(3)


@pytest.mark.parametrize(
    "other", [dict(dtype=jnp.bfloat16), dict(shape=(64, 32))], ids=["dtype", "shape"]
)
def test_another_dtype_or_shape_is_named(other, folder):
    with pytest.raises(
        errors.UserError, match=r"params.w is \(\(64, 64\), 'float32'\), this run has"
    ):
        Checkpoints(folder).restore(3, abstract(**other))


def test_a_failed_save_is_told_and_leaves_the_others(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    failed = pytest.raises(errors.UserError, match=r"step 4 could not be saved .*No space left")
    with failed, Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(4, state(4), RUN)
    monkeypatch.undo()
    assert Checkpoints(folder, keep=2).newest(repair=True) == 3 and names(folder) == ["2", "3"]


def test_no_room_is_told_before_saving(folder, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: types.SimpleNamespace(total=100, used=90, free=10)
    )
    refused = pytest.raises(
        errors.UserError, match="a checkpoint takes .* GB and .* GB are free; make room"
    )
    with refused, Checkpoints(folder) as checkpoints:
        checkpoints.save(4, state(4), RUN)
    assert names(folder) == ["2", "3"]


def test_a_manifest_is_only_what_was_written(folder):
    """Every flipped bit of the manifest itself is found."""
    file = folder / "3" / manifest.NAME
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert manifest.problems(folder / "3", 3, "sizes" if bit % 3 else "sha256") or _only_a_hash(
            content, changed
        )
    file.write_bytes(content)
    assert manifest.problems(folder / "3", 3) == [] and manifest.problems(folder / "3", 2)


def _only_a_hash(content, changed):
    """`sizes` does not look at hashes; sha256 does, and differs."""
    manifests = [json.loads(content), json.loads(changed)]
    sizes = []
    for read in manifests:
        sizes.append({name: entry["bytes"] for name, entry in read["files"].items()})
    return sizes[0] == sizes[1] and manifests[0] != manifests[1]


def saved_in_turn(folder, steps, **options):
    folder.mkdir(exist_ok=True)
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), RUN)
    return sorted(int(name) for name in names(folder))


def test_what_the_clock_saved_does_not_push_out_what_the_steps_did(tmp_path):
    """Of those between two multiples of 10 the newest stays, and `keep` in all."""
    assert saved_in_turn(tmp_path / "a", [3, 6], keep=2, every=10) == [3, 6]
    assert saved_in_turn(tmp_path / "a", [10, 13, 16], keep=2, every=10) == [10, 16]
    assert saved_in_turn(tmp_path / "a", [20, 23, 30], keep=2, every=10) == [20, 30]
    assert saved_in_turn(tmp_path / "b", [10, 13, 20, 23, 30, 33], keep=3, every=10) == [20, 30, 33]
    assert saved_in_turn(tmp_path / "c", [10, 13], keep=1, every=10) == [13]


def test_the_clock_starts_with_each_save(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(manager.time, "monotonic", lambda: now[0])
    with Checkpoints(tmp_path) as checkpoints:
        now[0] += 599
        assert not checkpoints.is_due(10)
        now[0] += 1
        assert checkpoints.is_due(10) and not checkpoints.is_due(10.1) and not checkpoints.is_due(0)
        checkpoints.save(1, state(1), RUN)
        assert not checkpoints.is_due(10)


class Service:
    """The coordination service as one of two processes sees it: what the other one says comes late.

    `others` has by topic what it says: its own values, or the decisions where it is process 0.
    """

    def __init__(self, others, late=3):
        self.others, self.late, self.asked, self.mine = others, late, collections.Counter(), {}

    def key_value_set(self, key, value):
        self.mine[key] = value

    def blocking_key_value_get(self, key, timeout_ms):
        if key in self.mine:
            return self.mine[key]
        self.asked[key] += 1
        if self.asked[key] <= self.late:
            what = f"DEADLINE_EXCEEDED: GetKeyValue() timed out after {timeout_ms} ms"
            raise jax.errors.JaxRuntimeError(what)
        _, topic, *_ = key.split("/")
        values = self.others.get(topic)
        return json.dumps(values.pop(0) if values else None)


def newest_as(index, others, folder, monkeypatch):
    """The newest step as process `index` of two finds it, and what it asked the service."""
    service, checkpoints = Service(others), Checkpoints(folder)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(distributed, "_client", lambda: service)
    found = checkpoints.newest()
    monkeypatch.undo()
    return found, service.asked


def done(result):
    return {"result": result, "problems": []}


def test_others_wait_for_the_first_process_as_long_as_it_takes(folder, monkeypatch):
    """Longer than one question to the service may: it is asked again. No device is."""
    answers = {
        "checkpoint candidate": [done(3), done(2)],
        "checkpoint sizes": [done([]), done([])],
        "checkpoint content": [["3/state is another"], []],
        "checkpoint damaged": [done(True)],
    }
    found, asked = newest_as(1, answers, folder, monkeypatch)
    assert found == 2 and set(asked.values()) == {4}
    assert names(folder) == ["2", "3"]


def test_every_process_hashes_its_share(folder, monkeypatch):
    """Between them all files, and what either finds counts."""
    files = set(json.loads((folder / "3" / manifest.NAME).read_text())["files"])
    hashed, original = [], manifest._hashes

    def hashes(*arguments, **named):
        hashed.append(original(*arguments, **named))
        return hashed[-1]

    first = {"checkpoint candidate": [done(3)], "checkpoint sizes": [done([])]}
    for index, others in enumerate(({}, first)):
        monkeypatch.setattr(manifest, "_hashes", hashes)
        found, _ = newest_as(index, others | {"checkpoint content": [[]]}, folder, monkeypatch)
        assert found == 3
    assert hashed[0].keys() | hashed[1].keys() == files
    assert not hashed[0].keys() & hashed[1].keys() and all(hashed)
    others = {"checkpoint content": [["state/x has another content"], []]}
    found, _ = newest_as(0, others, folder, monkeypatch)
    assert found == 2  # of 3 the other process found a part damaged


def test_a_folder_that_the_first_process_cannot_use_ends_all(folder, monkeypatch):
    problem = {"result": None, "problems": ["/x: cannot be used"]}
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    with pytest.raises(errors.UserError, match="/x: cannot be used"):
        newest_as(1, {"checkpoint candidate": [problem]}, folder, monkeypatch)


@pytest.mark.more
def test_the_first_process_may_take_longer_with_a_checkpoint_than_devices_wait(tmp_path):
    """On CPUs they give up after 30 s when they meet for the first time."""
    (tmp_path / "runs").mkdir()
    workdir, quick = tmp_path / "runs/run", ("--config.eval.every=0",)

    def run(steps, faults):
        allowed = "--config.resume.allow_changed=train.steps,steps"
        arguments = (*quick, f"--config.train.steps={steps}", allowed)
        processes = launch.start_many(workdir, 2, faults, arguments=arguments)
        assert [launch.wait(one) for one in processes] == [0, 0], launch.log(workdir)[-3000:]

    run(2, {})
    run(4, {0: launch.Fault("verify *", "sleep", argument=40.0)})
    assert f"{launch.HURT} sleep" in launch.phases(workdir)


@pytest.mark.parametrize("name", ["lr=[1e-5]", "b\\s", "a**b", "x#1 ü'%25,(a=0.5)"])
def test_what_is_saved_in_a_folder_of_any_name_can_be_read_or_is_refused(name, tmp_path):
    """Orbax takes the folder's path for a pattern where it joins what the processes wrote."""
    try:
        folder = folders.run_folder(str(tmp_path / name))
    except errors.UserError as error:
        assert f"--workdir={tmp_path}/{name}: checkpoints in a place with " in str(error)
        assert folders.run_folder(str(tmp_path / name), is_new=False) == tmp_path / name
        assert not name.startswith("x")
        return
    (folder / "checkpoints").mkdir(parents=True)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, state(1), RUN)
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(1, abstract()).params["w"], weights(1))
