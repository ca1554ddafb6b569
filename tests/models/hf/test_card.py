"""Model cards: what the Hub and a reader find in them, and that they name no place here."""

import json
import pathlib

import pytest
import yaml

from dft_jax import assets
from dft_jax.lm.run import open_run
from dft_jax.models.hf import card
from dft_jax.models.hf.provenance import Origin
from dft_jax.runtime import hub
from dft_jax.training import origin

SHA = "ab" * 32
BASE = {"path": "Qwen/Qwen3-4B", "revision": "main", "commit": "c0ffee", "init": "checkpoint"}
BASE |= {"sha256": SHA}
DATA = {
    "path": "openai/gsm8k",
    "commit": "decade",
    "sha256": "cd" * 32,
    "rows": {"read": 10, "used_whole": 7, "truncated": 1, "dropped": {"empty": 2}},
    "tokens": {"supervised": 123},
}
ENVIRONMENT = {
    "dft_jax": "0.1.0",
    "git": {"commit": "facade", "dirty": False},
    "python": "3.12.1",
    "versions": {"jax": "0.10.2"},
    "devices": {"count": 8, "kind": "TPU v5e"},
    "command": [
        "/home/bob/dft_jax/dft_jax/main.py",
        "--config=/home/bob/mine/math.py:objective=dft,base=/data/bob/base model",
        "--config.data.train=hf://openai/gsm8k",
        "--workdir=~/runs/x",
    ],
}
RESULT = {
    "benchmark": "math500",
    "temperature": 0.6,
    "avg_at_k": {"k": 16, "mean": 0.423, "interval_95": [0.391, 0.455]},
}


def account(**changes):
    given = {
        "objective": "power(alpha=0.5)",
        "settings": {"train.seed": 3, "model.path": "/home/bob/base"},
        "data": {"train": DATA, "length": {"n_examples": 8, "epochs": 1.0}},
        "environment": ENVIRONMENT,
        "before": {"heldout/nll": 1.25},
        "after": {"heldout/nll": 1.0, "heldout/supervised_tokens": 99},
        "results": (RESULT,),
    }
    return card.Account(**given | changes)


def about(base=BASE, **changes):
    made = Origin(objective="power(alpha=0.5)", step=40, path=base["path"], run={"base": base})
    types = {"dtype": "bfloat16", "rounding": {"lost_share": 0.03}}
    return made.report() | types | changes


def front_matter(text):
    """As the Hub reads it."""
    _, head, body = text.split("---\n", 2)
    assert body.strip()
    return yaml.safe_load(head)


def test_what_the_hub_reads(tmp_path):
    assert front_matter(card.text(about(), tmp_path, account())) == {
        "base_model": "Qwen/Qwen3-4B",
        "datasets": ["openai/gsm8k"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dft_jax", "fine-tuning", "power"],
    }


def test_what_a_reader_finds(tmp_path):
    text = card.text(about(), tmp_path, account())
    for words in (
        "Qwen3-4B, fine-tuned with power",
        "objective `power(alpha=0.5)`, 40 steps",
        f"- SHA-256 of the weights: {SHA}",
        "- commit: c0ffee",
        f"- SHA-256 of tokens and masks: {'cd' * 32}",
        "- rows read: 10\n- rows used whole: 7\n- rows cut: 1\n- rows dropped: 2 empty",
        "| nll, nats a token | 1.2500 | 1.0000 |",
        "| math500 | 0.6 | 16 | 42.3 | 39.1 to 45.5 |",
        "train.seed = 3",
        "- versions: jax 0.10.2",
        "- lost to rounding: 3.00% of the norm",
    ):
        assert words in text, words


def test_nothing_is_of_this_machine(tmp_path):
    text = card.text(about(), tmp_path, account())
    command = "python -m dft_jax.main '--config=math.py:objective=dft,base=base model'"
    assert f"{command} --config.data.train=hf://openai/gsm8k --workdir=x" in text
    assert "bob" not in text and "/home" not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    "given, expected",
    [
        ("/a/b/c", "c"),
        ("~/b/c/", "c"),
        ("../b/c", "c"),
        ("a/b", "a/b"),
        ("x=/a/b:y=/c/d", "x=b:y=d"),
        ("/a/b, /c/d", "b, d"),
        ("hf://a/b", "hf://a/b"),
        ("file:///a/b", "file:b"),
    ],
)
def test_paths_are_cut_to_their_last_name(given, expected):
    assert card.without_places(given) == expected


def test_a_base_that_is_no_model_of_the_hub_is_not_given_as_one(tmp_path):
    folder = BASE | {"path": "/home/bob/mine", "revision": None, "commit": None}
    text = card.text(about(folder), tmp_path, account())
    assert "base_model" not in front_matter(text) and "- model: mine\n" in text
    random = card.text(about(BASE | {"init": "random"}), tmp_path, account())
    assert "base_model" not in front_matter(random) and "drawn at random" in random


def test_a_snapshot_of_the_hub_is_known_by_its_folder(tmp_path):
    place = tmp_path / "models--Qwen--Qwen3-4B/snapshots/c0ffee"
    place.mkdir(parents=True)
    assert hub.id_of_snapshot(place) == "Qwen/Qwen3-4B" and hub.id_of_snapshot(tmp_path) is None
    folder = BASE | {"path": str(place), "revision": None}
    assert front_matter(card.text(about(folder), place, account()))["base_model"] == "Qwen/Qwen3-4B"


def test_each_source_of_a_mixture_is_named(tmp_path):
    own = DATA | {"path": "/home/bob/secret/own.jsonl", "commit": None, "sha256": "ef" * 32}
    train = {"path": [DATA["path"], own["path"]], "commit": ["decade", None], "sha256": "12" * 32}
    train["sources"] = {"gsm": DATA, "own": own}
    settings = {"data.train": [{"path": "/home/bob/secret/own.jsonl", "weight": 3}]}
    text = card.text(about(), tmp_path, account(data={"train": train}, settings=settings))
    assert front_matter(text)["datasets"] == ["openai/gsm8k"]
    for words in ("- source: gsm\n- data: openai/gsm8k\n", "- source: own\n- data: own.jsonl\n"):
        assert words in text, words
    assert "- SHA-256 of tokens and masks: " + "12" * 32 in text and "ef" * 32 in text
    assert "data.train = [{'path': 'own.jsonl', 'weight': 3}]" in text and "bob" not in text


def test_own_data_are_no_dataset_of_the_hub(tmp_path):
    own = {"train": DATA | {"path": "/home/bob/secret/train.jsonl", "commit": None}}
    text = card.text(about(), tmp_path, account(data=own))
    assert "datasets" not in front_matter(text) and "- data: train.jsonl\n" in text


@pytest.mark.parametrize(
    "base_card, expected",
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# A", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: 'qwen'\n---\n",
            {"license": "other", "license_name": "qwen"},
        ),
        ("# no front matter\nlicense: mit\n", {}),
        ("---\nlicense: mit\nnever ended\n", {}),
        (None, {}),
    ],
)
def test_the_licence_is_the_bases_or_none(base_card, expected, tmp_path):
    if base_card is not None:
        (tmp_path / "README.md").write_text(base_card)
    found = front_matter(card.text(about(), tmp_path, account()))
    assert {key: found[key] for key in found if key.startswith("license")} == expected


def test_values_that_would_break_out_of_their_place_do_not(tmp_path):
    hostile = account(
        settings={"data.template": "```\n# Title"},
        data={"train": DATA | {"path": "a|b\n## Heading", "commit": None}},
    )
    text = card.text(about(objective='x"\nlicense: mit'), tmp_path, hostile)
    assert "license" not in front_matter(text)
    assert "\n## Heading" not in text and "\n````\n" in text


def test_weights_of_nobody_knows_what(tmp_path):
    made = Origin().report() | {"dtype": "float32", "rounding": {"lost_share": 0.0}}
    text = card.text(made, tmp_path, None)
    assert "Nothing here says how these weights were trained" in text
    assert "fine-tuning" not in front_matter(text)["tags"]


def test_weights_that_their_type_cannot_hold(tmp_path):
    """dft_jax.json has null there."""
    text = card.text(about(rounding={"lost_share": None}), tmp_path, account())
    assert "- lost to rounding: not finite" in text


def test_what_is_not_known_is_left_out(tmp_path):
    """Of an older run, whose folder lacks most of it."""
    empty = card.Account(objective="sft")
    text = card.text(about(), tmp_path, empty)
    assert "None of this step is in the run's folder" in text and "None\n" not in text
    assert "rows read" not in text


@pytest.mark.slow
def test_the_card_of_a_run(whole):
    """As a user gets it: the export at the end of a run."""
    text = (whole / "export/README.md").read_text()
    report = json.loads((whole / "data_report.json").read_text())
    assert report["train"]["sha256"] in text and report["heldout"]["sha256"] in text
    assert "python -m dft_jax.main" in text and "--workdir=run" in text
    for place in (str(whole.parent), str(assets.TINY), str(pathlib.Path.home())):
        assert place not in text
    assert front_matter(text)["tags"] == ["dft_jax", "fine-tuning", "sft"]
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    nll = [row["heldout/nll"] for row in rows if "heldout/nll" in row]
    assert f"| nll, nats a token | {nll[0]:.4f} | {nll[-1]:.4f} |" in text
    saved = open_run(whole)
    told = origin.account_of(whole, saved.config, 8)
    assert told.objective == "sft" and told.settings["train.global_batch"] == 8
    assert origin.account_of(whole, saved.config, 5).after == {}


def test_an_objective_is_given_with_its_defaults():
    assert origin._objective("dft") == "dft"
    assert origin._objective("threshold") == "threshold(tau=0.2)"
    assert origin._objective("threshold(tau=0.3)") == "threshold(tau=0.3)"
