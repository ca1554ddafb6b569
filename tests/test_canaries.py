"""Secrets of the environment and of the git remote appear in nothing that a run writes or prints."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SECRETS = {
    name: f"canary-{number:02d}-5ecret"
    for number, name in enumerate(
        "HF_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY GITHUB_TOKEN OPENAI_API_KEY DB_URL".split()
    )
}
REMOTE = "canary-99-5ecret"
RUN = [
    *(
        "configs/tiny.py",
        "train.steps=4",
        "checkpoint.every=2",
        "data.max_rows=64",
        "data.max_length=160",
    ),
    *("train.global_batch=8", "eval.max_examples=8", "log.tensorboard=True"),
]


def hits(folder: pathlib.Path, printed: str) -> list[str]:
    """Files, and what was printed, with a canary in them, in plain or in UTF-16."""
    texts = {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()} | {
        "": printed.encode()
    }
    assert len(texts) > 20
    canaries = [
        c
        for secret in [*SECRETS.values(), REMOTE]
        for c in (secret.encode(), secret.encode("utf-16-le"))
    ]
    return [
        name for name, content in texts.items() if any(canary in content for canary in canaries)
    ]


@pytest.fixture
def checkout(tmp_path):
    """A git repository of the package whose remote's address holds a token."""
    folder = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "dft_jax", folder / "dft_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "configs", folder / "configs")
    for command in (
        ["init", "-q"],
        ["remote", "add", "origin", f"https://someone:{REMOTE}@example.com/x.git"],
        [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.com",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("board", ["no board", "wandb"])
def test_no_secret_is_written(board, checkout, tmp_path):
    options = [f"--config.{option}" for option in RUN[1:]]
    if board == "wandb":
        pytest.importorskip("wandb", reason="Weights & Biases is not installed")
        options.append("--config.log.wandb_project=p")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "dft_jax.main", f"--config={RUN[0]}", f"--workdir={out}", *options],
        cwd=checkout,
        env=os.environ
        | SECRETS
        | {"WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join(["", *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "export").exists()
    if board == "wandb":
        assert list(out.glob("wandb/**/*.wandb"))
    assert hits(out, done.stdout + done.stderr) == []


def test_the_search_finds_what_is_there(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}").write_text("nothing")
    (tmp_path / "7").write_text(f"token={SECRETS['HF_TOKEN']}")
    assert hits(tmp_path, f"git push https://{REMOTE}@example.com") == [str(tmp_path / "7"), ""]
