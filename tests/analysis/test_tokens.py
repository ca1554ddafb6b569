"""Token probabilities under checkpoints: dense logits, files that agree, a page that escapes."""

import contextlib
import csv
import dataclasses
import io
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dft_jax import assets, config as config_lib
from dft_jax.analysis import figures, token_report, token_scores, tokens
from dft_jax.commands import model_flags
from dft_jax.data.examples import Examples, load_examples
from dft_jax.data.templates import Example
from dft_jax.lm.checkpoint import open_config
from dft_jax.losses import objectives
from dft_jax.models import model as models
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.training import metrics
from dft_jax.types import Batch, TokenStats
from tests import commands
from tests.commands import run_command

DATA = "world(split=validation, family=chain, levels=2-3, n=24)"
READ = [f"--data={DATA}", "--rows=gsm8k", "--prompt=plain", "--context=192"]


def copy_of_lab(folder, change=lambda weight: weight):
    """A folder with the laboratory's base, its weights changed."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(assets.LAB / name, folder / name)
    weights = {
        name: change(weight) for name, weight in load_file(assets.LAB / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def perturbed(weight):
    noise = np.random.default_rng(weight.size).normal(size=weight.shape).astype(weight.dtype)
    return weight + 0.1 * weight.std() * noise


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return copy_of_lab(tmp_path_factory.mktemp("tuned") / "tuned=a", perturbed)


@pytest.fixture(scope="module")
def done(tuned, tmp_path_factory):
    """The command on two models, on 4 × 2 devices: what it wrote and printed."""
    out, printed, live_bytes = tmp_path_factory.mktemp("out") / "tokens", io.StringIO(), []
    open_lm = model_flags.open_lm

    def opened(*arguments, **named):
        lm = open_lm(*arguments, **named)

        def read():
            live_bytes.append(sum(array.nbytes for array in jax.live_arrays()))
            return lm.read()

        return dataclasses.replace(lm, read=read)

    arguments = [
        f"--models=base={assets.LAB},{tuned}",
        *READ,
        f"--out={out}",
        "--tensor=2",
        "--min_count=3",
    ]
    no_capture = types.SimpleNamespace(readouterr=lambda: ("", ""))
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_flags, "open_lm", opened)
        outcome = run_command(tokens.main, [*arguments, "--examples=2"], no_capture, patch)
    assert outcome.code == 0
    return types.SimpleNamespace(out=out, stdout=printed.getvalue(), live_bytes=live_bytes)


@pytest.fixture(scope="module")
def examples():
    config = config_lib.get_default()
    config.data.update(rows="gsm8k", template="plain", max_length=192)
    return load_examples(DATA, config.data, load_tokenizer(assets.LAB), 223).examples


def dense_logits(folder, examples):
    """Float64 logits of each example alone in its row, [examples, L, V], on one device."""
    config = config_lib.get_default()
    config.update_from_flattened_dict({"model.path": str(folder), "model.compute_dtype": "float32"})
    config.update_from_flattened_dict({"mesh.data": jax.device_count(), "data.max_length": 192})
    source, model, _ = open_config(config)
    params = load_params(Checkpoint(source), model)
    tokens_BL = np.zeros((len(examples), max(len(example.ids) for example in examples)), np.int32)
    segments_BL = np.zeros_like(tokens_BL)
    for row, example in enumerate(examples):
        tokens_BL[row, : len(example.ids)] = example.ids
        segments_BL[row, : len(example.ids)] = 1
    positions_BL = np.broadcast_to(np.arange(tokens_BL.shape[1]), tokens_BL.shape)
    # What is trained does not matter to the forward pass.
    batch = Batch(
        tokens_BL=tokens_BL,
        targets_BL=np.zeros_like(tokens_BL),
        mask_BL=np.zeros(tokens_BL.shape, bool),
        segments_BL=segments_BL,
        positions_BL=positions_BL,
    )
    hidden_BLD = np.asarray(jax.jit(lambda p: model.apply(p, batch))(params), np.float64)
    return hidden_BLD @ np.asarray(models.head(params), np.float64).T


def test_equals_dense_logits(done, tuned, examples):
    arrays = np.load(done.out / "tokens.npz")
    places = [
        (e, j) for e, example in enumerate(examples) for j in np.flatnonzero(example.trained) if j
    ]
    assert list(zip(arrays["example"], arrays["position"], strict=True)) == places
    assert arrays["token"].tolist() == [examples[e].ids[j] for e, j in places]
    rows_T, position_T = (np.array(x) for x in zip(*places, strict=True))
    for name, folder in (("base", assets.LAB), ("tuned=a", tuned)):
        logits_TV = dense_logits(folder, examples)[rows_T, position_T - 1]
        p_TV = np.exp(logits_TV - logits_TV.max(axis=1, keepdims=True))
        p_TV /= p_TV.sum(axis=1, keepdims=True)
        onehot_TV = np.eye(p_TV.shape[1])[arrays["token"]]
        for found, expected_T, atol in (
            ("p", (p_TV * onehot_TV).sum(axis=1), 2e-5),
            ("entropy", -(p_TV * np.log(p_TV)).sum(axis=1), 2e-5),
            ("gradient", gradient_T := np.linalg.norm(onehot_TV - p_TV, axis=1), 1e-3),
        ):
            assert arrays[f"{found}_{name}"].dtype == np.float32
            np.testing.assert_allclose(
                arrays[f"{found}_{name}"], expected_T, rtol=1e-3, atol=atol, err_msg=found
            )
        assert arrays[f"gradient_{name}"].mean() == pytest.approx(gradient_T.mean(), rel=1e-3)
    assert np.abs(arrays["p_base"] - arrays["p_tuned=a"]).max() > 0.1, (
        "two models should be told apart"
    )


def test_one_model_in_memory_at_a_time(done):
    first, second = done.live_bytes
    assert second - first < (assets.LAB / "model.safetensors").stat().st_size / 10


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 30.0])
def test_gradient_is_that_of_the_objectives(scale):
    logits_TV = scale * jax.random.normal(jax.random.key(0), (200, 50))
    # The most probable target too, where 1 - p is close to the rounding of log p.
    target_T = jnp.arange(200) % 50
    target_T = jnp.where(jnp.arange(200) < 100, target_T, logits_TV.argmax(axis=1))

    def logp(logits_TV):
        return jnp.take_along_axis(jax.nn.log_softmax(logits_TV), target_T[:, None], axis=1)

    found_T = token_scores.gradient_norm(logp(logits_TV), logp(2 * logits_TV))[:, 0]
    for name, weight_T in (("sft", 1.0), ("dft", jnp.exp(logp(logits_TV))[:, 0])):
        objective = objectives.make_objective(name)
        rest = dict.fromkeys(("entropy_BL", "correct_BL", "examples_BL"))

        def loss(x_TV, of=objective, rest=rest):
            return of(TokenStats(logp_BL=logp(x_TV), **rest)).sum()

        expected_T = jnp.linalg.norm(jax.grad(loss)(logits_TV), axis=1)
        np.testing.assert_allclose(weight_T * found_T, expected_T, rtol=1e-3, atol=1e-3)
    rest_T = -np.expm1(np.asarray(logp(logits_TV))[:, 0])
    assert (found_T >= rest_T - 1e-6).all() and (found_T <= 1.4143 * rest_T + 1e-6).all(), (
        "the bounds of rounding"
    )


def test_files_agree(done):
    arrays = np.load(done.out / "tokens.npz")
    summary = json.loads((done.out / "summary.json").read_text())
    assert summary["checkpoints"].keys() == summary["models"].keys() == {"base", "tuned=a"}
    assert summary["data"]["tokens"]["supervised"] == len(arrays["token"])
    for name, found in summary["models"].items():
        p_T, gradient_T = arrays[f"p_{name}"], arrays[f"gradient_{name}"]
        assert found["mean_p"] == pytest.approx(p_T.mean(), rel=1e-5)
        assert found["nll"] == pytest.approx(-np.log(p_T.astype(float)).mean(), rel=1e-5)
        assert found["entropy"] == pytest.approx(arrays[f"entropy_{name}"].mean(), rel=1e-5)
        assert found["share_of_p_below_0.01"] == pytest.approx(np.mean(p_T < 0.01))
        assert found["share_of_p_above_0.95"] == pytest.approx(np.mean(p_T > 0.95))
        for i, (low, high) in enumerate(
            zip(metrics.P_BIN_EDGES[:-1], metrics.P_BIN_EDGES[1:], strict=True)
        ):
            inside = (p_T >= low) & ((p_T < high) | (high == 1))
            assert found["p_histogram"][i] == pytest.approx(inside.mean())
            if not inside.any():
                assert found["sft_gradient_by_bin"][i] is found["dft_gradient_by_bin"][i] is None
                continue
            assert found["sft_gradient_by_bin"][i] == pytest.approx(
                gradient_T[inside].mean(), rel=1e-4
            )
            assert found["dft_gradient_by_bin"][i] == pytest.approx(
                (p_T * gradient_T)[inside].mean(), rel=1e-4
            )
    assert (done.out / "histogram.png").read_bytes().startswith(b"\x89PNG")
    names = {".lock", "tokens.npz", "summary.json", "changed.csv", "histogram.png", "tokens.html"}
    assert {file.name for file in done.out.iterdir()} == names, "no temporary file is left"


def test_changed_tokens(done):
    arrays = np.load(done.out / "tokens.npz")
    rows = list(csv.DictReader(io.StringIO((done.out / "changed.csv").read_text())))
    ids, counts = np.unique(arrays["token"], return_counts=True)
    assert {int(row["token_id"]) for row in rows} == set(ids[counts >= 3].tolist())
    for row in rows:
        is_type = arrays["token"] == int(row["token_id"])
        before_T, after_T = arrays["p_base"][is_type], arrays["p_tuned=a"][is_type]
        assert row["model"] == "tuned=a" and int(row["count"]) == is_type.sum()
        assert float(row["p_before"]) == pytest.approx(before_T.mean(), rel=1e-5)
        assert float(row["p_after"]) == pytest.approx(after_T.mean(), rel=1e-5)
        assert float(row["change"]) == pytest.approx(after_T.mean() - before_T.mean(), abs=1e-6)
        assert float(row["fell_below_0.01"]) == pytest.approx(
            np.mean((before_T >= 0.01) & (after_T < 0.01))
        )
    changes = [float(row["change"]) for row in rows]
    assert changes == sorted(changes)
    lines = done.stdout.splitlines()
    assert "tuned=a against base" in lines
    fallen, risen = ([line for line in lines if line.startswith(word)] for word in ("fell", "rose"))
    assert (
        1 <= len(fallen) <= 10
        and repr(rows[0]["token"]) in fallen[0]
        and f"{changes[0]:+.4f}" in fallen[0]
    )
    assert (
        1 <= len(risen) <= 10
        and repr(rows[-1]["token"]) in risen[0]
        and f"{changes[-1]:+.4f}" in risen[0]
    )


def test_page_shows_every_trained_token(done, examples):
    arrays, page = np.load(done.out / "tokens.npz"), (done.out / "tokens.html").read_text()
    titles = re.findall(r'<span class="b(\d+)" title="p ([^"]*), entropy ([^"]*) nats">', page)
    shown = [np.flatnonzero(arrays["example"] == e) for e in (0, 1)]
    expected = []
    for index in shown:
        expected += [f"{arrays['p_base'][t]:.3g}" for t in index]
        expected += [f"{arrays['p_base'][t]:.3g} to {arrays['p_tuned=a'][t]:.3g}" for t in index]
    assert [text for _, text, _ in titles] == expected
    for step, text, _ in titles:
        low, high = metrics.P_BIN_EDGES[int(step)], metrics.P_BIN_EDGES[int(step) + 1]
        assert low * 0.99 <= float(text.split()[-1]) <= high * 1.01
    assert page.count("<h2>") == 2 and page.count("<tr>") == 2 * (1 + 2 + 1), (
        "prompt, two models, a change"
    )
    assert "prefers-color-scheme: dark" in page and "<script" not in page and "http" not in page
    for label in figures.bin_labels():
        assert label in page


def test_page_escapes_and_shows_pieces_of_characters():
    tokenizer = load_tokenizer(assets.TINY)
    ids = np.array(tokenizer("q<i>?\n<b>&\n€")["input_ids"], np.int32)
    example = Example(ids, np.arange(len(ids)) >= 6, 0)
    p_T = np.linspace(0, 1, len(ids) - 6, dtype=np.float32)
    values = figures.TokenValues(p_T, p_T)
    page = figures.token_page({"<me>": values, "b": values}, [example], tokenizer)
    body = page.partition("</style>")[2]
    assert "q&lt;i&gt;?↵\n" in body and "<th>&lt;me&gt;<td>" in body
    assert "<i>" not in body and "<b>" not in body and "<me>" not in body
    spans = re.findall(r'<span class="b\d+" title="[^"]*">(.*?)</span>', body, re.DOTALL)
    assert spans[:5] == ["&lt;", "b", "&gt;", "&amp;", "↵\n"] and spans[5:8] == [
        "⟨â⟩",
        "⟨Ĥ⟩",
        "⟨¬⟩",
    ]
    assert spans[8:] == spans[:8]
    assert body.count("q&lt;i&gt;?") == 1, "the prompt is there once"


def test_page_shows_how_far_each_token_moved():
    tokenizer = load_tokenizer(assets.TINY)
    ids = np.array(tokenizer("q?abcdefg")["input_ids"], np.int32)
    example = Example(ids, np.arange(len(ids)) >= 2, 0)
    before_T = np.float32([0.5, 0.5, 0.5, 0.5, 0.9, 0.9, 0.001])
    after_T = np.float32([0.51, 0.55, 0.7, 0.9, 0.7, 0.85, 0.001])
    before = figures.TokenValues(before_T, before_T)
    models = {"base": before, "dft": figures.TokenValues(after_T, after_T)}
    (row,) = re.findall(
        "<tr><th>dft<br>against base<td>(.*)", figures.token_page(models, [example], tokenizer)
    )
    found = re.findall(r'<span class="(\w+)" title="([^"]*)">(\w)</span>', row)
    assert [(name, text) for name, _, text in found] == list(
        zip(["same", "r1", "r2", "r3", "f2", "f1", "same"], "abcdefg", strict=True)
    )
    assert found[3][1] == "p 0.5 to 0.9, +0.4" and found[4][1] == "p 0.9 to 0.7, -0.2"
    one = figures.token_page({"base": before}, [example], tokenizer)
    assert "change of p" not in one and "against" not in one


def test_later_turns_of_the_user_stay_where_they_are():
    """Of a conversation the prompt is what stands before the first answer."""
    tokenizer = load_tokenizer(assets.TINY)
    ids = np.array(tokenizer("qqabrrcd")["input_ids"], np.int32)
    example = Example(ids, np.array([0, 0, 1, 1, 0, 0, 1, 1], bool), 0)
    p_T = np.full(4, 0.5, np.float32)
    page = figures.token_page({"base": figures.TokenValues(p_T, p_T)}, [example], tokenizer)
    (row,) = re.findall("<tr><th>base<td>(.*)", page)
    assert re.sub("<[^>]*>", "", row) == "abrrcd" and '<span class="plain">rr</span>' in row


def test_a_word_keeps_the_space_that_sentencepiece_drops_at_the_beginning():
    class Metaspace:
        def decode(self, ids, **_):
            return "".join({5: "▁the", 6: "re"}[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert [figures.token_text(i, Metaspace()) for i in (5, 6)] == [" the", "re"]


def test_one_model_has_nothing_to_compare_with(tmp_path, examples, capsys):
    n = sum(int(figures.targets(example).sum()) for example in examples)
    scores = {"only": token_scores.Scores(*np.full((3, n), -0.5, np.float32))}
    token_report.write(
        scores,
        Examples(examples, {}, ["a"] * len(examples)),
        load_tokenizer(assets.LAB),
        {},
        tmp_path,
        min_count=5,
        n_examples=5,
    )
    assert (tmp_path / "changed.csv").read_text() == ",".join(token_scores.CHANGED_COLUMNS) + "\n"
    assert "against" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ([], ["--models is required"]),
        ([f"--models={assets.LAB}"], ["--data is required"]),
        ([f"--models={assets.LAB}", f"--data={DATA}"], ["--out is required"]),
        (
            [f"--models={assets.LAB}", f"--data={DATA}", "--out=gs://a/b"],
            ["--out=gs://a/b", "mounted"],
        ),
        (["--models=./none", *READ, "--out=o"], ["'./none' is not a folder"]),
        (
            [f"--models={assets.LAB},x={assets.LAB},x={assets.TINY}", *READ, "--out=o"],
            ["called 'x'", "name=checkpoint"],
        ),
        ([f"--models={assets.LAB},", *READ, "--out=o"], ["'' should be a checkpoint"]),
        ([f"--models={assets.LAB},run=run", *READ, "--out=o"], ["no config.json there"]),
        (
            [f"--models={assets.LAB},b=other", *READ, "--out=o"],
            ["lab and b have different tokenizers", "share one"],
        ),
        (
            [f"--models={assets.LAB}", *READ, "--data=none.jsonl", "--out=o"],
            ["'none.jsonl' does not exist"],
        ),
        (
            [f"--models={assets.LAB}", *READ, "--rows=gsm8", "--out=o"],
            ["--rows=gsm8", "did you mean 'gsm8k'"],
        ),
        (
            [f"--models={assets.LAB}", *READ, "--prompt=plane", "--out=o"],
            ["'plane' is unknown", "'plain'"],
        ),
        (
            [f"--models={assets.LAB}", *READ, "--context=0", "--out=o"],
            ["--context=0 should be at least 2"],
        ),
        ([f"--models={assets.LAB}", *READ, "--min_count=0", "--out=o"], ["min_count"]),
        (
            [f"--models={assets.LAB}", *READ, "--samples=2", "--nogreedy", "--out=o"],
            ["--samples=2 has no effect: nothing is sampled here; remove it", "--greedy=False has"],
        ),
        ([f"--models={assets.LAB}", *READ, "--tensor=3", "--out=o"], ["tensor=3"]),
        (
            [f"--models={assets.LAB}", *READ, "--out=a_file/o"],
            ["a_file/o", "Not a directory", "another folder"],
        ),
    ],
)
def test_wrong_input_is_refused(arguments, expected, tmp_path, capfd, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a_file").write_text("")
    other = copy_of_lab(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    commands.check_refused(tokens.main, arguments, expected, tmp_path, capfd, monkeypatch)


def test_a_diverged_model_is_refused(tmp_path, capfd, monkeypatch):
    broken = copy_of_lab(tmp_path / "broken", lambda weight: weight * np.float32(1e30))
    arguments = [f"--models={broken}", *READ, f"--out={tmp_path}/out", "--tensor=2"]
    outcome = run_command(tokens.main, arguments, capfd, monkeypatch)
    assert outcome.code == 2 and "broken: its probabilities are not finite" in outcome.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".lock"], "nothing but the lock"
