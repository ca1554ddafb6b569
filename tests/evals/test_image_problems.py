"""Problems that show images: from their files to prompts, samples and the folder of an evaluation.

The benchmark is made here, of a problem with one image, one with two, and one of text.
"""

import dataclasses
import json
from unittest import mock

import pytest

import dft_jax as dft
from dft_jax import assets, sharding
from dft_jax.data.image_files import ImageFile
from dft_jax.evals import evaluation, planning
from dft_jax.evals.scheduled import BenchmarkEvaluator
from dft_jax.evals.settings import Settings
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import Problem, Task
from dft_jax.lm.language_model import LM
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build, with_tower
from dft_jax.runtime import errors
from tests.image_checkpoint import IMAGE, MARK, image_checkpoint
from tests.image_examples import png_of


@dataclasses.dataclass(frozen=True)
class Pictured(Problem):
    images: tuple[ImageFile, ...] = ()


def picture(height, width, seed):
    return ImageFile(f"{seed}.png", content=png_of(height, width, seed))


PROBLEMS = (
    Pictured("one", "How many?", "1", images=(picture(56, 84, 0),)),
    Pictured("two", "Which?", "2", images=(picture(28, 28, 1), picture(56, 84, 2))),
    Pictured("text", "1 + 1?", "2"),
)


@dataclasses.dataclass(frozen=True)
class Made(Task):
    problems: tuple[Problem, ...] = PROBLEMS

    def load(self, path=""):
        return list(self.problems)


@pytest.fixture
def benchmark(monkeypatch):
    """made(problems): the benchmark `pictured` has these."""

    def made(problems=PROBLEMS):
        task = Made("pictured", "", len(problems), lambda row: "", problems=tuple(problems))
        monkeypatch.setitem(benchmarks.BENCHMARKS, "pictured", task)

    made()
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return image_checkpoint(tmp_path_factory.mktemp("vl") / "base")


SETTINGS = Settings(
    benchmarks=("pictured",), prompt="plain", samples=2, context=128, max_new_tokens=8, slots=4
)


def planned(folder, settings=SETTINGS, source="its own"):
    model = build(read_config(folder), sharding.make_mesh(1, 1, 1))
    source = folder if source == "its own" else source
    return planning.plan(settings, load_tokenizer(folder), model, source=source)


def test_each_image_is_one_token_in_the_text_and_as_many_as_units_in_the_prompt(
    benchmark, checkpoint
):
    plan = planned(checkpoint)
    texts = [plan.prompts["pictured", name] for name in ("one", "two", "text")]
    assert texts == [f"{MARK}How many?\n", f"{MARK}{MARK}Which?\n", "1 + 1?\n"]
    units = {"one": [6], "two": [1, 6], "text": []}
    for (_, _, name, _), request in plan.requests.items():
        runs = "".join("i" if id_ == IMAGE else " " for id_ in request.prompt_ids).split()
        assert list(map(len, runs)) == units[name]
        assert [picture.n_patches // 4 for picture in request.images] == units[name]
    assert plan.sampler.model.tower is not None
    assert plan.pixels() == {"pictured": [28 * 28, 28 * 28 * 40]}


def test_other_images_are_another_set_of_problems(benchmark, checkpoint):
    before = planned(checkpoint)
    other = dataclasses.replace(PROBLEMS[0], images=(picture(56, 84, 9),))
    benchmark((other, *PROBLEMS[1:]))
    after = planned(checkpoint)
    assert before.prompts == after.prompts
    assert before.digest() != after.digest()
    assert before.prompts_json() != after.prompts_json()
    benchmark(PROBLEMS[2:])
    text = planned(checkpoint)
    assert text.images == {} and text.sampler.model.tower is None


def test_limits_of_pixels_are_those_that_are_asked_for(benchmark, checkpoint):
    settings = dataclasses.replace(SETTINGS, image_max_pixels=28 * 28, image_min_pixels=28 * 28)
    plan = planned(checkpoint, settings)
    assert plan.pixels() == {"pictured": [28 * 28, 28 * 28]}
    for pictures in plan.images.values():
        assert {picture.grid for picture in pictures} == {(2, 2)}
    with pytest.raises(errors.UserError, match="at least 40,000 and at most 31,360 pixels"):
        planned(checkpoint, dataclasses.replace(SETTINGS, image_min_pixels=40_000))
    found = dataclasses.replace(SETTINGS, image_min_pixels=40, image_max_pixels=30).mistakes("--")
    assert found == ["--image_max_pixels=30 should be at least image_min_pixels=40"]


def test_limits_are_idle_where_no_problem_shows_an_image():
    asked = Settings(benchmarks=("gsm8k", "lab"), image_min_pixels=900)
    assert asked.idle("--") == [
        "--image_min_pixels=900 has no effect: no problem of gsm8k, lab shows an image; remove it"
        " (--image_min_pixels=0)"
    ]
    for name in ("mathverse", "lab_vision_card"):
        assert dataclasses.replace(asked, benchmarks=("lab", name)).idle("--") == []
    with pytest.raises(errors.UserError, match="image_min_pixels=900 has no effect"):
        dft.evaluate(mock.create_autospec(LM, instance=True), ["lab"], image_min_pixels=900)


def test_what_cannot_be_shown_is_refused_by_name(benchmark, checkpoint, tmp_path):
    with pytest.raises(errors.UserError, match="pictured shows images, and the model is one for t"):
        planned(assets.TINY)
    with pytest.raises(errors.UserError, match="the tower is not read here"):
        planned(checkpoint, source=None)
    no_picture = dataclasses.replace(PROBLEMS[0], images=(ImageFile("a.png", content=b"a,b\n"),))
    marked = dataclasses.replace(PROBLEMS[2], question=f"{MARK}?")
    large = dataclasses.replace(PROBLEMS[1], images=(picture(140, 224, 3),) * 4)
    benchmark((no_picture, marked, large))
    with pytest.raises(errors.UserError) as refused:
        planned(checkpoint)
    assert len(refused.value.problems) == 3
    assert "pictured 'one': 'a.png': an image cannot be read" in refused.value.problems[0]
    assert "1 tokens stand for an image, but the row has 0" in refused.value.problems[1]
    assert "leaves no room for an answer within 128" in refused.value.problems[2]
    assert "a smaller image_max_pixels" in refused.value.problems[2]


def predictions(out):
    lines = (out / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_an_evaluation_says_which_images_it_showed(benchmark, checkpoint, tmp_path):
    lm = dft.load(checkpoint)
    assert lm.model.tower is None
    out = tmp_path / "out"
    outcome = evaluation.sample(lm, SETTINGS, out)
    assert outcome.n_completions == 9
    rows = predictions(out)
    plan = planned(checkpoint)
    for row in rows:
        assert row.get("images", []) == plan.shown("pictured", row["id"])
        assert row["prompt"] == plan.prompts["pictured", row["id"]]
    assert len({row["completion"] for row in rows if row["id"] != "text"}) > 2
    said = json.loads((out / "evaluation.json").read_text())
    assert said["image_pixels"] == {"pictured": [28 * 28, 28 * 28 * 40]}

    # A run whose rows have images, and so the tower, evaluates the same.
    model = with_tower(build(read_config(checkpoint), sharding.make_mesh(1, 1, 1)))
    params = load_params(Checkpoint(checkpoint), model)
    evaluator = BenchmarkEvaluator(
        SETTINGS,
        0,
        load_tokenizer(checkpoint),
        model,
        tmp_path / "run",
        date="",
        trained="",
        source=checkpoint,
    )
    evaluator.begin(1, 0, {"run_id": "a"})
    evaluator.run(1, params)
    of_run = predictions(tmp_path / "run" / "eval" / "1")
    assert [row["completion"] for row in of_run] == [row["completion"] for row in rows]

    # Nothing is left to sample, and other images or sizes are another evaluation.
    assert evaluation.sample(dft.load(checkpoint), SETTINGS, out).n_completions == 9
    smaller = dataclasses.replace(SETTINGS, image_max_pixels=28 * 28)
    with pytest.raises(errors.UserError, match=r"pixels of an image of pictured.*784, 784"):
        evaluation.sample(dft.load(checkpoint), smaller, out)
    other = dataclasses.replace(PROBLEMS[0], images=(picture(56, 84, 9),))
    benchmark((other, *PROBLEMS[1:]))
    with pytest.raises(errors.UserError, match="'one' shows other images now"):
        evaluation.sample(dft.load(checkpoint), SETTINGS, out)
