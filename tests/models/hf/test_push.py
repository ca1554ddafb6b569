"""Exports sent to the Hub: a stand-in of its HTTP API on this machine, never the network."""

import json
import os
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants

import dft_jax as dft
from dft_jax import assets
from dft_jax.commands import export
from dft_jax.models.hf import push as push_lib
from dft_jax.models.hf.push import push
from dft_jax.runtime import errors
from tests import fake_hub
from tests.commands import ROOT, run_command, tree


@pytest.fixture(scope="module")
def server():
    with fake_hub.running() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch):
    """The stand-in with nothing in it, and a token that it knows."""
    server.repos.clear()
    server.asked.clear()
    server.large.clear()
    server.broken = server.broken_upload = 0
    # It knows Git LFS, and not the protocol of a package that the Hub's library takes if it is there.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    return server


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "export"
    made.mkdir()
    (made / "dft_jax.json").write_text(json.dumps({"objective": "dft", "step": 40}))
    (made / "README.md").write_text("---\ntags: [dft_jax]\n---\n# A model\n")
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)))
    return made


def test_an_export_becomes_a_private_repository_in_one_commit(hub, folder):
    said = push(folder, "me/tiny-dft")
    assert said == f"{hub.endpoint}/me/tiny-dft (private)"
    repo = hub.repos["me/tiny-dft"]
    assert repo.private and repo.files == tree(folder)
    assert repo.commits == ["Export of dft_jax: dft, 40 steps"]


def test_a_public_one_is_asked_for(hub, folder):
    assert push(folder, "me/tiny-dft", is_public=True).endswith("(public)")
    assert not hub.repos["me/tiny-dft"].private


def test_a_repository_that_is_there_is_as_public_as_it_was(hub, folder):
    hub.repos["me/tiny-dft"] = fake_hub.Repo(private=False)
    assert push(folder, "me/tiny-dft").endswith("(public)")
    assert "POST /api/repos/create" not in hub.asked


def test_weights_of_an_earlier_export_do_not_stay(hub, folder):
    """transformers would read the old file, if the new ones are several with an index."""
    push(folder, "me/tiny-dft")
    hub.repos["me/tiny-dft"].files["notes.txt"] = b"mine"
    (folder / "model.safetensors").unlink()
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        (folder / name).write_bytes(b"1")
    (folder / "model.safetensors.index.json").write_text("{}")
    push(folder, "me/tiny-dft")
    assert hub.repos["me/tiny-dft"].files == tree(folder) | {"notes.txt": b"mine"}


def test_nothing_of_an_earlier_export_changes_what_is_read(hub, folder):
    """Its template would be the prompt, and its adapter's config make an adapter of the model."""
    earlier = {
        "config.json": b"{}",
        "chat_template.jinja": b"old",
        "additional_chat_templates/source.jinja": b"older",
        "adapter_config.json": b"{}",
        "base.json": b"{}",
        "adapter/adapter_config.json": b"{}",
        "adapter/README.md": b"",
        "dft_jax.json": b"{}",
    }
    own = {"notes.txt": b"mine", "figures/loss.png": b"mine", ".gitattributes": b""}
    hub.repos["me/tiny-dft"] = fake_hub.Repo(True, earlier | own)
    push(folder, "me/tiny-dft")
    assert hub.repos["me/tiny-dft"].files == tree(folder) | own


def refused(folder, name="me/tiny-dft"):
    """One line, and the export as it was; returned is the line."""
    before = tree(folder)
    with pytest.raises(errors.UserError) as caught:
        push(folder, name)
    assert tree(folder) == before
    line = caught.value.report()
    assert "\n" not in line and f"The export is complete in {folder}" in line
    assert f"`hf upload {name} {folder} --private`" in line
    return line


def test_a_model_of_somebody_else_is_not_overwritten(hub, folder):
    files = {"model.safetensors": b"work of a month", "README.md": b""}
    hub.repos["me/tiny-dft"] = fake_hub.Repo(True, dict(files))
    assert "it holds a model that dft_jax has not exported; give another NAME" in refused(folder)
    assert hub.repos["me/tiny-dft"].files == files


def test_no_token(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no token; `hf auth login`, or HF_TOKEN" in refused(folder)
    assert hub.asked == []


def test_a_token_that_the_hub_does_not_know(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert "the Hub does not know the token (401); `hf auth login`" in refused(folder)


def test_a_token_that_may_only_read(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    assert "the token may not write there (403); give another OWNER" in refused(folder)
    hub.repos["me/tiny-dft"] = fake_hub.Repo(True)
    assert "the token may not write there (403)" in refused(folder)


def test_an_owner_that_is_somebody_else(hub, folder):
    assert "the token may not write there (403)" in refused(folder, "them/tiny-dft")


@pytest.mark.parametrize("status, words", [(404, "no such place (404)"), (500, "500")])
def test_what_the_hub_answers(status, words, hub, folder):
    hub.broken = status
    assert words in refused(folder)


def test_weights_go_where_the_hub_keeps_large_files(hub, folder):
    push(folder, "me/tiny-dft")
    assert list(hub.large.values()) == [(folder / "model.safetensors").read_bytes()]
    push(folder, "me/other")
    assert sum(line.startswith("PUT") for line in hub.asked) == 1, "sent twice"


@pytest.mark.parametrize(
    "status, words", [(403, "the token may not write there (403)"), (400, "the Hub answered Bad")]
)
def test_weights_that_do_not_arrive(status, words, hub, folder):
    hub.broken_upload = status
    assert words in refused(folder)
    assert not hub.repos["me/tiny-dft"].commits, "a repository without its weights"


def test_no_network(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "the Hub cannot be reached" in refused(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in refused(folder)


def test_a_mistake_of_ours_is_no_line_of_the_users(hub, folder, monkeypatch):
    monkeypatch.setattr(push_lib, "_message", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        push(folder, "me/tiny-dft")


NO_NAMES = ["tiny", "a/b/c", "https://huggingface.co/me/tiny", "me/", "me/a b", "me/-a", "me/a--b"]


@pytest.fixture(scope="module")
def lab():
    return dft.load(assets.LAB)


@pytest.mark.parametrize("name", [*NO_NAMES, "", "me/tiny.git", "me/tiny\n", "me/" + "a" * 97])
def test_what_is_no_name_is_refused_before_anything_is_done(
    name, lab, hub, tmp_path, capfd, monkeypatch
):
    with pytest.raises(errors.UserError, match="should be OWNER/NAME, as in me/qwen-gsm8k-dft"):
        dft.export(lab, tmp_path / "out", push=name)
    done = run_command(
        export.main, [f"--workdir={tmp_path}/none", f"--push={name}"], capfd, monkeypatch
    )
    assert done.code == 2 and "should be OWNER/NAME" in done.stderr, done
    assert hub.asked == [] and list(tmp_path.iterdir()) == []


def test_public_without_push_is_refused(tmp_path, capfd, monkeypatch):
    done = run_command(export.main, [f"--workdir={tmp_path}", "--public"], capfd, monkeypatch)
    assert done.code == 2 and "--public has no effect without --push" in done.stderr


@pytest.mark.slow
def test_the_command_exports_and_pushes(hub, whole, tmp_path):
    """As a user starts it, with what the Hub's own library reads of the environment."""
    out = tmp_path / "out"
    given = [f"--workdir={whole}", f"--out={out}", "--push=me/tiny-sft"]
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_good", "HF_HUB_OFFLINE": "0"}
    variables |= {"HF_HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu"}
    variables |= {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "dft_jax.export", *given]
    options = dict(cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    done = subprocess.run(command, **options, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"pushed to {hub.endpoint}/me/tiny-sft (private)" in done.stdout
    assert hub.repos["me/tiny-sft"].files == tree(out)
    assert "README.md" in hub.repos["me/tiny-sft"].files


@pytest.mark.slow
def test_the_api_exports_and_pushes(hub, tmp_path, capfd):
    dft.export(dft.load(assets.LAB), tmp_path / "out", push="me/lab", public=True)
    assert f"pushed to {hub.endpoint}/me/lab (public)" in capfd.readouterr().out
    assert hub.repos["me/lab"].files == tree(tmp_path / "out")
