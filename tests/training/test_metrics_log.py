"""The run's directory: whole files only, one row a step after any restart, JSON that is JSON."""

import hashlib
import json
import pathlib
import subprocess
import sys
import threading
import types

import pytest

from dft_jax.runtime import environment, errors, files
from dft_jax.training import metrics_log
from tests.tiny_trainer import tiny_config


def rows(folder):
    return [
        json.loads(line, parse_constant=pytest.fail)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def write(folder, resume_from, steps):
    log = metrics_log.Writer(folder, tiny_config().log, resume_from=resume_from)
    for step in steps:
        log.write(step, {"train/loss": step / 2})
    log.close()


def test_a_resumed_run_has_each_step_once(tmp_path):
    write(tmp_path, None, [0, 1, 2, 3])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    write(tmp_path, 2, [3, 4])
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_run_killed_before_its_first_checkpoint_starts_its_metrics_again(tmp_path):
    write(tmp_path, None, [0, 1])
    write(tmp_path, None, [0, 1, 2])
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]


def test_not_a_number_is_null(tmp_path):
    log = metrics_log.Writer(tmp_path, tiny_config().log, resume_from=None)
    log.write(1, {"train/loss": float("nan"), "optimizer/gradient_norm": float("inf")})
    log.close()
    assert rows(tmp_path) == [{"step": 1, "train/loss": None, "optimizer/gradient_norm": None}]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    files.write_json(tmp_path / "a.json", {"old": 1})

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(metrics_log.os, "replace", fail)
    with pytest.raises(OSError):
        files.write_json(tmp_path / "a.json", {"new": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


class UsageError(Exception):
    """As wandb raises without a key: its own type, of no relation to OSError."""


def wandb_that(init):
    """A stand-in for the wandb module, which is not among the packages of the tests."""
    return types.SimpleNamespace(
        Settings=lambda **limits: types.SimpleNamespace(**limits), init=init
    )


class Service:
    """A run of Weights & Biases; `do` says what its methods do."""

    def __init__(self, log=lambda: None, finish=lambda: None):
        self.do, self.rows = {"log": log, "finish": finish}, []

    def log(self, scalars, step):
        self.do["log"]()
        self.rows.append((step, scalars))

    def finish(self):
        self.do["finish"]()


def raises(error):
    def do(**_):
        raise error

    return do


def hangs(**_):
    threading.Event().wait(60)


# What goes wrong -> wandb.init, and what is said of it.
SERVICES = {
    "no key": (
        raises(UsageError("No API key configured. Use `wandb login`")),
        "No API key configured",
    ),
    "no network": (raises(ConnectionError("name resolution failed")), "name resolution failed"),
    "ends the process": (raises(SystemExit(1)), "left out from now on"),
    "hangs": (hangs, "not everything has arrived within 0.3 s"),
    "fails later": (lambda **_: Service(log=raises(OSError("quota exceeded"))), "quota exceeded"),
    "hangs at the end": (
        lambda **_: Service(finish=hangs),
        "not everything has arrived within 0.3 s",
    ),
}


@pytest.mark.parametrize("case", SERVICES)
def test_a_service_that_is_down_costs_a_warning(case, tmp_path, monkeypatch, capfd):
    init, words = SERVICES[case]
    monkeypatch.setitem(sys.modules, "wandb", wandb_that(init))
    monkeypatch.setattr(metrics_log, "_PATIENCE_S", 0.3)
    log = metrics_log.Writer(
        tmp_path, tiny_config(**{"log.wandb_project": "p"}).log, resume_from=None
    )
    for step in range(3):
        log.write(step, {"train/loss": step / 2})
    log.close()
    said = capfd.readouterr().err
    assert (
        said.count("warning: Weights & Biases: ") == 1
        and words in said
        and "metrics.jsonl has it all" in said
    )
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]


def test_a_service_that_works_gets_each_step_once(tmp_path, monkeypatch, capfd):
    service, asked = Service(), {}

    def init(**options):
        asked.update(options)
        return service

    monkeypatch.setitem(sys.modules, "wandb", wandb_that(init))
    log = metrics_log.Writer(
        tmp_path, tiny_config(**{"log.wandb_project": "p"}).log, resume_from=None
    )
    log.write(1, {"train/loss": 0.5, "train/p_histogram": [0.5, 0.5]})
    log.write(2, {"train/loss": 0.25})
    log.close()
    assert service.rows == [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.25})]
    assert asked["project"] == "p" and asked["settings"].init_timeout == metrics_log._PATIENCE_S
    assert asked["settings"].disable_git and asked["settings"].x_disable_meta
    assert "warning" not in capfd.readouterr().err


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def package_in(folder):
    (folder / "some_package").mkdir(parents=True)
    (folder / "some_package" / "__init__.py").touch()
    return folder / "some_package"


@pytest.fixture
def project(tmp_path):
    """A repository with a package at its top, a copy among its own files, and one in a virtual
    environment.
    """
    own = package_in(tmp_path)
    package_in(tmp_path / "third_party")
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    return own, package_in(tmp_path / ".venv" / "site-packages")


def test_a_checkouts_commit_is_its_own(project, monkeypatch):
    own, _ = project
    head = git(own, "rev-parse", "HEAD")
    assert environment.commit_of(own) == {"commit": head, "dirty": False}
    monkeypatch.setenv("GIT_DIR", str(pathlib.Path(__file__).parents[2] / ".git"))
    assert environment.commit_of(own) == {"commit": head, "dirty": False}, (
        "inside a hook of another repository"
    )
    (own / "__init__.py").write_text("x = 1")
    assert environment.commit_of(own) == {"commit": head, "dirty": True}


def test_an_installed_packages_commit_is_not_that_of_the_repository_around_it(project, monkeypatch):
    """But the one it was installed from, where pip says one, without the address, which may hold a
    token.
    """
    own, installed = project
    assert environment.commit_of(installed) is None
    assert environment.commit_of(own.parent / "third_party" / "some_package") is None, (
        "nobody could look it up"
    )
    git(own, "rm", "-q", "--cached", "__init__.py")
    assert environment.commit_of(own) is None, "the repository does not hold it"
    about = installed.parent / "some_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some_package\nVersion: 1.0\n")
    origin = {"url": "https://token@host/x.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}
    monkeypatch.syspath_prepend(str(installed.parent))
    assert environment.commit_of(installed) is None, "from an index"
    (about / "direct_url.json").write_text(json.dumps(origin))
    assert environment.commit_of(installed) == {"commit": "c0ffee", "dirty": False}
    assert environment.commit_of(own) is None, "another copy is installed"


def test_runs_are_told_apart_at_the_service(tmp_path, monkeypatch):
    """A run that begins anew in its folder, one in a folder of that path elsewhere, and a copy are
    none of them it.
    """
    run, anew, copy = (("runs/x", "a1"), ("runs/x", "b2"), ("runs/y", "a1"))
    ids = [
        metrics_log.board_id(pathlib.Path(folder), run_id)
        for folder, run_id in (run, anew, copy, run)
    ]
    assert len(set(ids)) == 3 and ids[0] == ids[3]
    older = hashlib.sha256(b"runs/x").hexdigest()[:16]
    assert metrics_log.board_id(pathlib.Path("runs/x"), None) == older, (
        "an older run goes on where it was"
    )
    asked = {}
    monkeypatch.setitem(
        sys.modules, "wandb", wandb_that(lambda **options: asked.update(options) or Service())
    )
    config = tiny_config(**{"log.wandb_project": "p"})
    about = config.to_dict()
    metrics_log.Writer(tmp_path, config.log, resume_from=None, run_id="a1", about=about).close()
    assert asked["config"] == about
    assert (asked["id"], asked["resume"]) == (metrics_log.board_id(tmp_path, "a1"), "allow")


def test_tensorboard_that_cannot_write_costs_a_warning(tmp_path, capfd):
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    log = metrics_log.Writer(
        tmp_path, tiny_config(**{"log.tensorboard": True}).log, resume_from=None
    )
    log.write(1, {"train/loss": 0.5})
    log.close()
    said = capfd.readouterr().err
    assert said.count("warning: TensorBoard: left out from now on") == 1
    assert [row["step"] for row in rows(tmp_path)] == [1]


def test_tensorboard_has_what_was_written(tmp_path):
    log = metrics_log.Writer(
        tmp_path, tiny_config(**{"log.tensorboard": True}).log, resume_from=None
    )
    log.write(1, {"train/loss": 0.5})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in file.read_bytes()


@pytest.mark.parametrize(
    "key, package", [("tensorboard", "tensorboardX"), ("wandb_project", "wandb")]
)
def test_a_package_that_cannot_be_imported_is_refused(key, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    config = tiny_config(**{f"log.{key}": True if key == "tensorboard" else "p"})
    with pytest.raises(
        errors.UserError, match=f"config.log.{key} is set, but {package} cannot .*pip install"
    ):
        metrics_log.require_boards(config.log)
