"""Damaged data and templates, workdirs of other runs: exit code 2, with place and remedy, before
compiling.
"""

import os
import shutil
import subprocess
import sys
import termios

import pytest

from configs import tiny
from dft_jax import assets, main
from dft_jax.api import train as run
from tests import commands
from tests.commands import ROOT, TINY, Outcome, assert_refused, run_command, tree
from tests.conftest import GOLDEN
from tests.marks import slow_but

GOOD = b'{"prompt": "1+1?", "completion": "2"}\n'

# Name -> (file name, its content, overrides beside data.rows=fields, what stderr must say).
DATA = {
    "empty file": (
        "a.jsonl",
        b"",
        [],
        ["a.jsonl", "no example to train on", "the file has no rows"],
    ),
    "blank lines only": ("a.jsonl", b"\n\n", [], ["a.jsonl", "the file has no rows"]),
    "malformed line": (
        "a.jsonl",
        GOOD + b"{'prompt': 1}\n",
        [],
        ["a.jsonl:2: not JSON at column 2", "fix or remove the line"],
    ),
    "truncated last line": (
        "a.jsonl",
        GOOD + GOOD[:20],
        [],
        ["a.jsonl:2: not JSON", "was the file cut off?", "fix or remove"],
    ),
    "duplicate key": (
        "a.jsonl",
        b'{"prompt": "x", "prompt": "y"}\n',
        [],
        ["a.jsonl:1: key 'prompt' appears twice", "keep one"],
    ),
    "not UTF-8": (
        "a.jsonl",
        GOOD * 2 + b'{"prompt": "\xff"}\n',
        [],
        ["a.jsonl:3: not UTF-8 at byte 12", "re-save the file as UTF-8"],
    ),
    "byte order mark of a joined file": (
        "a.jsonl",
        GOOD + b"\xef\xbb\xbf" + GOOD,
        [],
        ["a.jsonl:2: begins with a byte order mark (BOM)", "remove these three bytes"],
    ),
    "brackets too deep": (
        "a.jsonl",
        b"[" * 200_000 + b"\n",
        [],
        ["a.jsonl:1: not JSON that Python reads", "fix or remove"],
    ),
    "number too long": (
        "a.jsonl",
        b"9" * 5000 + b"\n",
        [],
        ["a.jsonl:1: not JSON that Python reads", "fix or remove"],
    ),
    "line is a list": (
        "a.jsonl",
        b"[1]\n",
        [],
        ["a.jsonl:1: expected a JSON object, found list", "one object per line"],
    ),
    "half a surrogate pair": (
        "a.jsonl",
        b'{"prompt": "x", "completion": "\\ud800"}\n',
        [],
        ["a.jsonl:1: field 'completion'", "surrogate", "re-save"],
    ),
    "number for text": (
        "a.jsonl",
        b'{"prompt": 3, "completion": "x"}\n',
        [],
        ["a.jsonl:1: field 'prompt' should be text, not int", "quotes"],
    ),
    "missing column": (
        "a.jsonl",
        b'{"question": "x", "completion": "y"}\n',
        [],
        [
            "a.jsonl:1: field 'prompt' is missing",
            "'completion', 'question'",
            "set data.rows or the field names",
        ],
    ),
    "null for text": (
        "a.jsonl",
        b'{"prompt": null, "completion": "y"}\n',
        [],
        ["a.jsonl:1: field 'prompt' is null", "remove the row"],
    ),
    "empty completion": (
        "a.jsonl",
        GOOD + b'{"prompt": "x", "completion": " "}\n',
        [],
        ["a.jsonl:2: field 'completion' is empty", "data.bad_rows='drop'"],
    ),
    "many bad rows": (
        "a.jsonl",
        b"{}\n" * 9,
        [],
        ["a.jsonl:1:", "a.jsonl:2:", "a.jsonl:3:", "and 6 more bad rows", "data.bad_rows='drop'"],
    ),
    "all rows dropped": (
        "a.jsonl",
        b"{}\n",
        ["--config.data.bad_rows=drop"],
        ["a.jsonl: no example", "1 bad_row", "first: a.jsonl:1"],
    ),
    "all prompts too long": (
        "a.jsonl",
        b'{"prompt": "' + b"long " * 200 + b'", "completion": "2"}\n',
        ["--config.data.max_length=16"],
        ["a.jsonl: no example to train on", "1 prompt_too_long", "first: a.jsonl:1"],
    ),
    "JSON is not a list": (
        "a.json",
        GOOD,
        [],
        ["a.json:1: expected a list of objects, found dict", "put the rows into [ ]"],
    ),
    "JSON lines named .json": (
        "a.json",
        GOOD * 2,
        [],
        ["a.json:2: not JSON (Extra data", "name the file .jsonl"],
    ),
    "malformed JSON": ("a.json", b'[\n{"prompt": "x"},\n]', [], ["a.json:", "not JSON", "fix it"]),
    "JSON not UTF-8": ("a.json", b'[\n"\xff"]', [], ["a.json:2: not UTF-8", "re-save"]),
    "JSON item is text": (
        "a.json",
        b'["x"]',
        [],
        ["a.json[0]: expected a JSON object", "fix or remove it"],
    ),
    "unknown suffix": (
        "a.txt",
        GOOD,
        [],
        ["a.txt: unknown ending '.txt'", "known: .jsonl, .json, .parquet"],
    ),
    "broken parquet": (
        "a.parquet",
        b"PAR1 and nothing else",
        [],
        ["a.parquet: not a readable parquet file", "write it again"],
    ),
    "messages are not a list": (
        "a.jsonl",
        b'{"messages": "hello"}\n',
        ["--config.data.rows=messages"],
        ["a.jsonl:1: field 'messages' should be a list of messages, not str", "set data.rows"],
    ),
    "bad role": (
        "a.jsonl",
        b'{"messages": [{"role": "human", "content": "x"}]}\n',
        ["--config.data.rows=messages"],
        ["a.jsonl:1: message 0 has role 'human'", "one of system, user, assistant"],
    ),
    "last message is the user's": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "x"}]}\n',
        ["--config.data.rows=messages"],
        ["a.jsonl:1: the last message should be the assistant's", "add the answer"],
    ),
    "conversation for a one-question template": (
        "a.jsonl",
        b'{"messages": [{"role": "assistant", "content": "x"}]}\n',
        ["--config.data.rows=messages", "--config.data.template=plain"],
        [
            "a.jsonl:1: template 'plain' takes one question and one answer",
            "not 1 messages",
            "set data.template=",
        ],
    ),
}

# Name -> (text of a chat template, what stderr must say).
TEMPLATES = {
    "syntax error": ("{{ 1 }}\n{% for %}", ["t.jinja':2:", "fix it"]),
    "unknown filter": ("{{ messages | shout }}", ["t.jinja':1:", "shout", "fix it"]),
    "raises": (
        "{{ raise_exception('no tools here') }}",
        ["a.jsonl:1: template", "no tools here", "fix one of them"],
    ),
    "TypeError inside": (
        "{{ messages[0].content + 1 }}",
        ["a.jsonl:1: template", "TypeError", "fix it"],
    ),
    "not UTF-8": (b"\xff", ["t.jinja' cannot be read", "give a UTF-8 file"]),
}


@pytest.mark.parametrize("case", DATA)
def test_data(case, refused, tmp_path):
    name, content, overrides, expected = DATA[case]
    (tmp_path / name).write_bytes(content)
    refused([f"--config.data.train={tmp_path / name}", *overrides], expected)


def test_missing_data(refused, tmp_path):
    refused(
        [f"--config.data.train={tmp_path}/no.jsonl"],
        ["config.data.train=", "no.jsonl", "no such file", "correct the path"],
    )


@pytest.mark.parametrize("key", ["data.train", "data.template", "data.image_folder", "model.path"])
def test_a_name_that_is_too_long(key, refused):
    """As a folder that is closed to the user, whose error of the system ended in a traceback."""
    refused([f"--config.{key}=./{'a' * 300}.jinja"], [f"config.{key}=", "looked from"])


def test_bad_heldout_data(refused, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(GOOD + b"{}\n")
    overrides = [
        f"--config.data.train={tmp_path}/a.jsonl",
        f"--config.data.heldout={tmp_path}/b.jsonl",
    ]
    refused(overrides, ["b.jsonl:2: field 'prompt' is missing"])


def test_hub_data_offline(refused):
    refused(
        ["--config.data.train=nobody/nothing"],
        ["dataset 'nobody/nothing'", "hf download --repo-type dataset nobody/nothing"],
    )


def test_empty_data_folder(refused, tmp_path):
    (tmp_path / "data").mkdir()
    refused(
        [f"--config.data.train={tmp_path}/data"],
        ["/data has no rows", "put .jsonl or .json or .parquet files there, or name one"],
    )


def test_broken_file_in_a_data_folder(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1")
    refused(
        [f"--config.data.train={tmp_path}/data"],
        ["train.parquet: not a readable parquet file", "write it again"],
    )


def test_data_folder_without_the_column(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(b'{"question": "x"}\n')
    refused(
        [f"--config.data.train={tmp_path}/data"],
        ["train.jsonl:1: field 'prompt' is missing", "has 'question'", "set data.rows"],
    )


def test_parquet_without_the_column(refused, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"question": ["x"]}), tmp_path / "a.parquet")
    refused(
        [f"--config.data.train={tmp_path}/a.parquet"],
        ["a.parquet[0]: field 'prompt' is missing", "has 'question'", "set data.rows"],
    )


@pytest.mark.parametrize("case", TEMPLATES)
def test_template(case, refused, tmp_path):
    text, expected = TEMPLATES[case]
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "t.jinja").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(
        [f"--config.data.train={tmp_path}/a.jsonl", f"--config.data.template={tmp_path}/t.jinja"],
        expected,
    )


SMALL_RUN = {
    "train.steps": 1,
    "data.heldout": "",
    "data.max_length": 192,
    "train.global_batch": 8,
    "log.tensorboard": False,
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The directory of a run, the data file it was trained on, and what was compiled for it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copyfile(assets.TINY / "heldout.jsonl", folder / "a.jsonl")
    settings = tiny.get_config()
    settings.update_from_flattened_dict(SMALL_RUN | {"data.train": str(folder / "a.jsonl")})
    commands.compiled.clear()
    run(settings, folder / "run")
    return folder / "run", folder / "a.jsonl", tuple(commands.compiled)


def small_run_arguments(workdir, data):
    overrides = [f"--config.{key}={value}" for key, value in SMALL_RUN.items()]
    return [TINY, f"--workdir={workdir}", f"--config.data.train={data}", *overrides]


@pytest.mark.slow
def test_a_run_that_compiles_is_heard(finished_run):
    """Without this, that nothing was compiled in the other cases would prove nothing."""
    *_, compiled = finished_run
    assert "jit(train_step)" in compiled
    with pytest.raises(AssertionError, match="only after a compilation"):
        assert_refused(Outcome(2, "", "error: x\n", compiled))


# Name -> (overrides of the finished run, what stderr must say).
OTHER_RUNS = {
    "another seed": (["--config.train.seed=7"], ["config.train.seed: 0 -> 7"]),
    "another objective": (["--config.objective=dft"], ["config.objective: 'sft' -> 'dft'"]),
    "two changes": (
        ["--config.optimizer.learning_rate=0.5", "--config.train.steps=2"],
        ["config.optimizer.learning_rate: 0.01 -> 0.5", "config.train.steps: 1 -> 2"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER_RUNS)
def test_workdir_of_another_run(case, finished_run, capfd, monkeypatch):
    overrides, expected = OTHER_RUNS[case]
    workdir, data, _ = finished_run
    before = tree(workdir)
    outcome = run_command(
        main.main, [*small_run_arguments(workdir, data), *overrides], capfd, monkeypatch
    )
    assert_refused(
        outcome, *expected, "holds another run: undo the change, or give a new --workdir"
    )
    assert tree(workdir) == before


@pytest.mark.slow
def test_workdir_of_other_data(finished_run, capfd, monkeypatch):
    workdir, data, _ = finished_run
    before, content = tree(workdir), data.read_bytes()
    data.write_bytes(content.replace(b"apples", b"grapes", 1))
    outcome = run_command(main.main, small_run_arguments(workdir, data), capfd, monkeypatch)
    data.write_bytes(content)
    assert_refused(
        outcome,
        "training_data_sha256: ",
        "holds another run: undo the change, or give a new --workdir",
    )
    assert tree(workdir) == before


def test_workdir_is_a_file(tmp_path, capfd, monkeypatch):
    (tmp_path / "run").write_text("precious")
    outcome = run_command(main.main, [TINY, f"--workdir={tmp_path}/run"], capfd, monkeypatch)
    assert_refused(outcome, f"--workdir={tmp_path}/run: cannot be used")
    assert tree(tmp_path) == {"run": b"precious"}


# Name -> overrides; {folder} holds a data file whose second line is damaged, and nothing else.
SUBPROCESSES = {
    "config": (["--config.train.sede=1"], ["did you mean 'train.seed'"]),
    "data": (
        ["--config.data.train={folder}/a.jsonl", "--config.data.rows=fields"],
        ["a.jsonl:2: not JSON", "fix or remove"],
    ),
    "checkpoint": (
        [f"--config.model.path={GOLDEN}/llama", "--config.data.max_length=32"],
        ["no usable tokenizer", "copy tokenizer"],
    ),
    "mesh": (["--config.mesh.data=3"], ["config.mesh: data=3", "8 devices", "(1, 2, 4, 8)"]),
}


@pytest.mark.parametrize("case", slow_but(["config"], list(SUBPROCESSES)))
def test_as_a_command(case, tmp_path):
    """What run_command reports is what a shell sees."""
    overrides, expected = SUBPROCESSES[case]
    done = subprocess.run(
        _command(tmp_path, overrides), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), *expected)
    assert list(tree(tmp_path)) == ["a.jsonl"]


@pytest.mark.slow
def test_on_a_terminal(tmp_path):
    """A progress bar has gone from the screen before the message comes."""
    overrides, expected = SUBPROCESSES["data"]
    code, stderr = _run_on_terminal(_command(tmp_path, overrides))
    assert "read a.jsonl" in stderr, "no progress bar was shown"
    screen = "\n".join(
        line.rpartition("\r")[2] for line in stderr.replace("\r\n", "\n").split("\n")
    )
    assert_refused(Outcome(code, "", screen), *expected)


def _command(folder, overrides):
    (folder / "a.jsonl").write_bytes(GOOD + b"{\n")
    command = [sys.executable, "-m", "dft_jax.main", TINY, f"--workdir={folder}/run"]
    return command + [override.format(folder=folder) for override in overrides]


def _run_on_terminal(command):
    """Exit code, and all that was written to the terminal."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs, timeout=120)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # Linux says so that the other end is closed
        pass
    os.close(ours)
    return done.returncode, written.decode()
