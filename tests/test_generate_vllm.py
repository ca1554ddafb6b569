"""scripts/generate_vllm.py against a local fake of the OpenAI-compatible interface."""

import contextlib
import http.server
import importlib.util
import json
import threading

import pytest

from dft_jax import assets
from dft_jax.commands import evaluate
from dft_jax.evals.tasks import benchmarks
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import progress
from tests.commands import ROOT, assert_refused, run_command

spec = importlib.util.spec_from_file_location("generate_vllm", ROOT / "scripts/generate_vllm.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


class Fake:
    """A server that notes what it is asked, and answers as it is told to.

    Args:
      answer: gives the status and the content for each body.
    """

    def __init__(self, answer, models=None):
        self.bodies = []
        self.headers = []
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def send(self, status, content):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                assert self.path == "/v1/models"
                self.send(200, {"data": models or [{"id": "mine", "max_model_len": 4096}]})

            def do_POST(self):
                assert self.path == "/v1/completions"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                fake.headers.append(dict(self.headers))
                self.send(*answer(body))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/"

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


def completion(text, reason="stop", tokens=7):
    choice = {"text": text, "finish_reason": reason, "index": 0}
    return 200, {"choices": [choice], "usage": {"completion_tokens": tokens}}


PROBLEMS = benchmarks.load("lab")[:3]
ANSWER_TO = {f"{problem.question}\n": problem.answer for problem in PROBLEMS}


def right_answers(body):
    prompt = load_tokenizer(assets.LAB).decode(body["prompt"])
    if body["temperature"] == 0:
        return completion("I think and think", "length", 9)
    return completion(f"So.\n#### {ANSWER_TO[prompt]}")


def command(out, url, *more):
    return [
        f"--model={assets.LAB}",
        "--benchmarks=lab",
        "--max_problems=3",
        "--samples=2",
        "--max_new_tokens=64",
        f"--out={out}",
        f"--url={url}",
        *more,
    ]


@pytest.mark.slow
def test_requests_predictions_and_their_grades(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    out = tmp_path / "predictions.jsonl"
    with Fake(right_answers).running() as fake:
        outcome = run_command(script.main, command(out, fake.url), capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    assert "9 completions in" in outcome.stdout and outcome.compiled == ()
    tokenizer = load_tokenizer(assets.LAB)
    for body in fake.bodies:
        assert tokenizer.decode(body["prompt"]) in ANSWER_TO
        assert body["model"] == "mine" and body["max_tokens"] == 64 and body["n"] == 1
        assert body["stop_token_ids"] == [tokenizer.eos_token_id]
        # Said, so that no generation_config.json of the checkpoint says otherwise.
        assert (body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, -1, 1.0)
    sampled = [body for body in fake.bodies if body["temperature"] == 1]
    assert len(sampled) == 6 and len({body["seed"] for body in fake.bodies}) == 9
    assert {headers["Authorization"] for headers in fake.headers} == {"Bearer k"}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["temperature"], row["id"], row["sample"]) for row in rows[:3]] == [
        (0.0, "0", 0),
        (1.0, "0", 0),
        (1.0, "0", 1),
    ]
    assert rows[0] == {
        "benchmark": "lab",
        "id": "0",
        "sample": 0,
        "temperature": 0.0,
        "prompt": f"{PROBLEMS[0].question}\n",
        "completion": "I think and think",
        "tokens": 9,
        "truncated": True,
    }
    graded = run_command(
        evaluate.main, [f"--grade={out}", f"--out={tmp_path}/scores"], capfd, monkeypatch
    )
    assert graded.code == 0, graded.stderr
    results = json.loads((tmp_path / "scores/scores.json").read_text())["results"]
    assert {one["temperature"]: one["avg_at_k"]["mean"] for one in results} == {0.0: 0.0, 1.0: 1.0}
    assert {one["temperature"]: one["truncation_rate"] for one in results} == {0.0: 1.0, 1.0: 0.0}


@pytest.mark.slow
def test_a_file_that_it_was_stopped_in_is_continued(tmp_path, capfd, monkeypatch):
    """Killed in the middle of a line, or ended by a refusal: what is there is not asked for again."""
    monkeypatch.setattr(script, "_WAIT_S", 0.01)
    out = tmp_path / "predictions.jsonl"
    asked = []

    def refuses_the_fifth(body):
        asked.append(body)
        if len(asked) == 5:
            return 400, {"message": "too long"}
        return right_answers(body)

    with Fake(refuses_the_fifth).running() as fake:
        arguments = command(out, fake.url, "--parallel=1")
        outcome = run_command(script.main, arguments, capfd, monkeypatch)
    assert outcome.code == 2 and "no answer (400" in outcome.stderr and "too long" in outcome.stderr
    there = out.read_text().splitlines(keepends=True)
    assert len(there) == 4
    out.write_text("".join(there) + '{"benchmark": "la')
    refused = []

    def busy_at_first(body):
        refused.append(body)
        if len(refused) < 3:
            return 503, {}
        return right_answers(body)

    with Fake(busy_at_first).running() as fake:
        arguments = command(out, fake.url, "--parallel=2")
        outcome = run_command(script.main, arguments, capfd, monkeypatch)
        assert outcome.code == 0, outcome.stderr
        assert "9 completions in" in outcome.stdout and "5 of them new" in outcome.stdout
        assert len(fake.bodies) == 7 and len(out.read_text().splitlines()) == 9
        before = out.read_bytes()
        other = run_command(script.main, [*arguments, "--top_p=0.9"], capfd, monkeypatch)
        assert_refused(other, "holds completions of other settings", "top_p: 1.0 -> 0.9")
        again = run_command(script.main, arguments, capfd, monkeypatch)
    assert "0 of them new" in again.stdout and out.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "answer", "more", "expected"),
    [
        ([{"id": "a"}, {"id": "b"}], right_answers, [], "has the models a, b; name one of them"),
        ([{"id": "a"}], right_answers, ["--served=c"], "--served=c: "),
        ([{"id": "a", "max_model_len": 70}], right_answers, [], "with room for 70 tokens, and "),
        ([{"id": "a"}], lambda body: (200, {"text": "?"}), [], "answer is no completion"),
        ([{"id": "a"}], lambda body: completion("?", "abort"), [], "its completion by 'abort'"),
        ([{"id": "a"}], right_answers, ["--out=x.json"], "should be a file of predictions"),
        ([{"id": "a"}], right_answers, ["--benchmarks=labb"], "did you mean 'lab'?"),
        ([{"id": "a"}], right_answers, ["--url=http://127.0.0.1:9/v1"], "no answer ("),
    ],
)
def test_what_cannot_be_right_is_refused_in_a_line(
    models, answer, more, expected, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(script, "_WAIT_S", 0.01)
    # Without the bar of what was sampled before the mistake.
    with Fake(answer, models).running() as fake, progress.silent():
        arguments = command(tmp_path / "p.jsonl", fake.url, "--parallel=1", *more)
        assert_refused(run_command(script.main, arguments, capfd, monkeypatch), expected)


@pytest.mark.slow
def test_texts_that_end_programs_are_asked_for_and_no_part_of_a_row(tmp_path, capfd, monkeypatch):
    """They are those of `evaluate`; an engine may leave them."""
    out = tmp_path / "predictions.jsonl"
    asked = ["--benchmarks=lab_code", "--max_problems=2", "--samples=1", "--programs=skip"]

    def continued(body):
        return completion("    return x\n\ndef " if body["temperature"] else "    return x\n")

    with Fake(continued).running() as fake:
        arguments = command(out, fake.url, *asked, "--prompt=plain")
        outcome = run_command(script.main, arguments, capfd, monkeypatch)
        assert outcome.code == 0, outcome.stderr
        stop = list(benchmarks.find("lab_code").stop_texts("plain"))
        assert "\ndef " in stop and [body["stop"] for body in fake.bodies] == [stop] * 4
        settings = json.loads((tmp_path / "predictions.settings.json").read_text())
        assert settings["stop_texts"] == {"lab_code": stop}
        fake.bodies.clear()
        chat = command(tmp_path / "chat.jsonl", fake.url, *asked, "--prompt=qwen-boxed")
        assert run_command(script.main, chat, capfd, monkeypatch).code == 0
        assert not any("stop" in body for body in fake.bodies)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["completion"] for row in rows} == {"    return x\n"}
