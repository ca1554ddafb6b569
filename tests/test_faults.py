"""The short form of the fault campaign (tests/faults): a few of each fault, on real processes."""

import pytest

from tests.faults import corruption, kills, places, state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def assert_all_well(rows, count):
    assert len(rows) == count
    wrong = [row for row in rows if not row["ok"]]
    assert not wrong, "\n".join(map(str, wrong))


def test_killed_at_phases_of_a_save_and_others(whole, folder):
    rows = list(
        kills.kill_chain(
            folder, state.summary(whole), ["compile", "save", "commit", "evaluate", "export"], 0
        )
    )
    assert_all_well(rows, 5)
    assert sum(row["landed"] for row in rows) >= 4  # a run may be over before its killer wakes up


def test_the_best_checkpoint_outlasts_kills(folder):
    rows = list(kills.best_chain(folder, ("whole 1", "commit 5", "whole 5", "commit 8")))
    assert_all_well(rows, 4)
    assert all(row["landed"] for row in rows), rows


@pytest.mark.more
def test_adapters_outlast_kills_at_each_phase(whole, folder):
    phases = ("evaluate 0", "save 2", "commit 2", "whole 4", "step 7", "commit 8", "export rename")
    rows = list(kills.lora_chain(folder, whole, phases))
    assert_all_well(rows, 7)
    assert all(row["landed"] for row in rows), rows


def test_a_run_with_images_outlasts_kills(folder):
    """What is frozen of the tower is in no checkpoint, and read again at each start."""
    rows = list(kills.image_chain(folder, ["commit", "step"], 0))
    assert_all_well(rows, 2)
    assert all(row["landed"] for row in rows), rows


def test_signals_leave_a_checkpoint_and_exit_42(folder):
    ends = kills.uninterrupted(folder, 1)
    rows = list(kills.term_chain(folder, ends, ["step", "evaluate", "save", "export"], 1, 0))
    assert_all_well(rows, 5)


@pytest.mark.more
def test_a_signal_to_one_process_of_two_stops_both(folder):
    rows = list(kills.term_chain(folder, {}, ["save", "export"], 2, 0))
    assert_all_well(rows, 3)


def test_damaged_checkpoints_are_set_aside(whole, folder):
    assert_all_well(list(corruption.corruptions(whole, folder, 25, 0)), 25)


def test_a_second_run_in_the_folder_is_refused(whole, folder):
    assert_all_well(list(places.two_runs(folder, state.summary(whole))), 1)


def test_a_clock_that_was_set_back(whole, folder):
    assert_all_well(list(places.clock_set_back(folder, state.summary(whole))), 1)


def test_the_others_end_when_a_process_dies(folder):
    assert_all_well(list(places.dead_peers(folder, ("save 4",), (1,))), 1)


def test_full_and_read_only_disks(whole, folder):
    (folder / "disk").mkdir()
    rows = places.in_namespace(folder / "disk", whole, 6)
    if rows[0]["ok"] is None:
        pytest.skip(rows[0]["detail"])
    assert_all_well(rows, 4)


def test_every_kind_of_damage_is_done(whole, tmp_path):
    """Of the campaign itself: each kind changes the file that it is told to."""
    import random
    import shutil

    shutil.copytree(whole / "checkpoints/8", tmp_path / "8")
    files = sorted(file for file in (tmp_path / "8").rglob("*") if file.is_file())
    for kind in corruption.KINDS:
        before = files[0].read_bytes()
        assert corruption.damage(files[0], kind, files[1:], random.Random(0))
        assert not files[0].exists() or files[0].read_bytes() != before, kind
        files[0].write_bytes(before)
