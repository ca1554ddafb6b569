"""`python -m dft_jax.generate --image=FILE`, and the same of the API."""

import dataclasses
import json

import numpy as np
import pytest

import dft_jax as dft
from dft_jax import assets
from dft_jax.commands import generate
from dft_jax.models.parts import VISION
from tests.commands import assert_refused, run_command
from tests.image_checkpoint import MARK, image_checkpoint
from tests.image_examples import png_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a checkpoint `base` and pictures."""
    folder = tmp_path_factory.mktemp("images")
    image_checkpoint(folder / "base")
    (folder / "a.png").write_bytes(png_of(56, 84, 0))
    (folder / "b.png").write_bytes(png_of(56, 84, 1))
    (folder / "large.png").write_bytes(png_of(400, 400, 1))
    (folder / "text.png").write_text("a,b\n")
    return folder


@pytest.fixture
def run(capfd, monkeypatch):
    """run(*arguments): what the command comes to."""

    def run(*arguments):
        for name in generate.FLAGS:
            generate.FLAGS[name].unparse()
        return run_command(generate.main, arguments, capfd, monkeypatch)

    return run


def flags(folder, *images, model="base"):
    shown = [f"--image={folder / image}" for image in images]
    return [f"--model={folder / model}", "--prompt=How many?", "--template=plain", *shown]


@pytest.mark.slow
def test_completions_depend_on_the_pictures_in_their_order(folder, run):
    def completed(*images):
        more = ["--json", "--temperature=0", "--max_new_tokens=8"]
        outcome = run(*flags(folder, *images), *more)
        assert outcome.code == 0, outcome.stderr
        return json.loads(outcome.stdout)

    first, second = completed("a.png", "b.png"), completed("b.png", "a.png")
    assert first["prompt"] == second["prompt"] == f"{MARK}{MARK}How many?\n"
    assert first["images"] == second["images"][::-1]
    assert first["completion"] != second["completion"]

    base = dft.load(folder / "base")
    settings = dict(template="plain", temperature=0, max_new_tokens=8, show_progress=False)
    shown = [folder / "a.png", folder / "b.png"]
    assert dft.sample(base, "How many?", images=shown, **settings) == [first["completion"]]


@pytest.mark.parametrize(
    ("images", "more", "words"),
    [
        (["none.png"], [], ["none.png", "no such file"]),
        (["a" * 300], [], [f"{'a' * 300}: nothing there can be read", "name too long"]),
        ([], ["--image=~nobody-here/a.png"], ["~nobody-here/a.png: nothing there can be read"]),
        (["text.png"], [], ["text.png", "cannot be read as one of PNG, JPEG"]),
        (["large.png"], ["--context=32"], ["no room within 32", "are of its images"]),
        (["a.png"], [f"--model={assets.LAB}"], ["a model for text alone", "Qwen2.5-VL"]),
        (["a.png"], ["--prompt=" + MARK], ["2 tokens stand for an image", "1 images"]),
    ],
    ids=[
        "missing",
        "too long",
        "nobody's",
        "no picture",
        "too large",
        "text alone",
        "a token written",
    ],
)
def test_what_cannot_be_shown_is_refused(folder, images, more, words, run):
    outcome = run(*flags(folder, *images), *more)
    # The command has said by then what it read.
    said = [line for line in outcome.stderr.splitlines() if not line.startswith("model: ")]
    assert len(said) <= 2
    assert_refused(dataclasses.replace(outcome, stderr="\n".join(said)), *words)


def test_pictures_stand_before_a_prompt(folder, run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    for more in ([f"--file={tmp_path / 'prompts.jsonl'}"], []):
        outcome = run(f"--model={folder / 'base'}", f"--image={folder / 'a.png'}", *more)
        assert_refused(outcome, "--image is shown before --prompt, and there is none")


@pytest.mark.slow
def test_the_tower_comes_with_the_text_that_is_read_already(folder):
    base = dft.load(folder / "base")
    shown = base.with_images()
    assert shown.with_images() is shown
    params = shown.params
    assert params.keys() - base.params.keys() == {VISION}
    assert params["embed"] is base.params["embed"]
    norm = params[VISION]["merger"]["norm"]["scale"]
    assert np.asarray(norm).std() > 0.01, "of the checkpoint, and not as initialised"
