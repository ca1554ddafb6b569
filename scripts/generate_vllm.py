"""Completions of benchmarks from an engine that serves an export: vLLM, SGLang, or any other with
the OpenAI-compatible HTTP interface. They are graded here, or on another machine.

vllm serve exports/mine --port=8000
python scripts/generate_vllm.py --model=exports/mine --benchmarks=math500,aime24 --samples=16 \\
    --url=http://localhost:8000/v1 --out=predictions.jsonl
python -m dft_jax.evaluate --grade=predictions.jsonl --out=evals/mine

SGLang: python -m sglang.launch_server --model-path exports/mine --port 8000

The flags are those of dft_jax.evaluate, and so are the prompts, as token ids, what ends a
completion, and lengths. The noise is the engine's own: samples differ from those of
dft_jax.evaluate, and so may greedy completions, where two tokens are about as probable. `entropy`
is not known here. The command continues a file that it was stopped in. OPENAI_API_KEY is sent where
it is set.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the accelerator is the engine's

from absl import flags

from dft_jax.commands import cli, model_flags
from dft_jax.data.templates import today
from dft_jax.evals import evaluation, planning
from dft_jax.evals.planning import Key, Plan
from dft_jax.runtime import errors, files, folders, progress
from dft_jax.sampling.sampler import Request
from dft_jax.sampling.texts import until_stop

_MODEL = flags.DEFINE_string(
    "model", None, "What is served: an export, or another Hugging Face folder.", allow_override=True
)
_OUT = flags.DEFINE_string("out", None, "File of predictions, .jsonl.", allow_override=True)
_URL = flags.DEFINE_string("url", "http://localhost:8000/v1", "Of the server's interface.")
_SERVED = flags.DEFINE_string("served", "", "Its name there; by default the one that is served.")
_PARALLEL = flags.DEFINE_integer("parallel", 64, "Requests at once.", 1)

_TRIES = 5
_WAIT_S = 1.0  # before the second try; twice as long before each other one
_TIMEOUT_S = 3600  # a long completion among many takes minutes


@dataclasses.dataclass(frozen=True)
class Server:
    """An engine: where it is, and what it calls the model."""

    url: str
    model: str

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """What it answers to one request for completions."""
        return _call(f"{self.url}/completions", body)


def find(url: str, served: str, longest: int) -> Server:
    """The server at a URL, which has the model, and room for prompts and completions of `longest`
    tokens.

    Raises:
      UserError: nothing answers there, or it has no such model, or too little room.
    """
    url = url.rstrip("/")
    models = _call(f"{url}/models", None).get("data", [])
    by_name = {str(model.get("id")): model for model in models}
    if not served and len(by_name) == 1:
        (served,) = by_name
    if served not in by_name:
        has = ", ".join(by_name) or "none"
        raise errors.UserError(f"--served={served}: {url} has the models {has}; name one of them")
    room = by_name[served].get("max_model_len")
    if isinstance(room, int) and room < longest:
        what = f"{url} serves {served} with room for {room} tokens, and {longest} are needed"
        raise errors.UserError(f"{what}; serve it with more (--max-model-len), or lower --context")
    return Server(url, served)


def body_of(key: Key, plan: Plan, server: Server) -> dict[str, Any]:
    """The request of a key as the interface takes it.

    All that a server would else take from the checkpoint's generation_config.json is said: Qwen's
    has a top_k, a top_p and a repetition penalty, and its samples would be of another distribution.
    """
    settings, request = plan.settings, plan.requests[key]
    body = {
        "model": server.model,
        # Ids, not text: a server would put another BOS before it, or split it in its own way.
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed_of(settings.seed, request),
        "stop_token_ids": list(plan.stops.ids),
        "skip_special_tokens": True,
        "spaces_between_special_tokens": False,
        "n": 1,
        "stream": False,
    }
    stop = plan.stop_texts.get(key[0])
    if stop:
        body["stop"] = list(stop)
    return body


def seed_of(seed: int, request: Request) -> int:
    """31 bits of its own for each completion: with one seed, all samples of a prompt are equal."""
    name = json.dumps([seed, request.problem, request.temperature, request.sample])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1


def row_of(key: Key, plan: Plan, answer: dict[str, Any]) -> dict[str, Any]:
    """A completion as predictions.jsonl has it.

    Raises:
      UserError: an answer that is none, or a completion that neither ended nor was cut.
    """
    benchmark, temperature, problem, sample = key
    try:
        (choice,) = answer["choices"]
        text, reason = choice["text"], choice["finish_reason"]
        tokens = answer["usage"]["completion_tokens"]
    except (KeyError, TypeError, ValueError) as error:
        shown = json.dumps(answer)[:200]
        what = f"{benchmark} {problem!r}: the server's answer is no completion: {shown}"
        raise errors.UserError(f"{what}; give the --url of an OpenAI-compatible server") from error
    if reason not in ("stop", "length"):
        what = f"{benchmark} {problem!r}: the server ended its completion by {reason!r}"
        raise errors.UserError(f"{what}; look into its log, then run the same command again")
    # An engine may leave what ended it (no_stop_trim).
    text = until_stop(text, plan.stop_texts.get(benchmark, ()))
    row = {
        "benchmark": benchmark,
        "id": problem,
        "sample": sample,
        "temperature": temperature,
        "prompt": plan.prompts[benchmark, problem],
        "completion": text,
        "tokens": tokens,
        "truncated": reason == "length",
    }
    # The grader has to know how the answer begins.
    if plan.settings.answer_prefix:
        row["answer_prefix"] = plan.settings.answer_prefix
    return row


def generate(plan: Plan, server: Server, out: Path, parallel: int) -> int:
    """Writes the completions that `out` does not have yet; returns how many these were.

    They are appended as they come, and in the plan's order when all are there.
    """
    done = read_done(plan, out)
    missing = [key for key in plan.requests if key not in done]
    with open(out, "a", encoding="utf-8") as lines:
        pool = concurrent.futures.ThreadPoolExecutor(parallel)
        try:
            keys = {}
            for key in missing:
                keys[pool.submit(server.complete, body_of(key, plan, server))] = key
            finished = concurrent.futures.as_completed(keys)
            for future in progress.bar(
                finished, desc="sampling", unit="completion", total=len(keys)
            ):
                key = keys[future]
                done[key] = row_of(key, plan, future.result())
                lines.write(json.dumps(done[key]) + "\n")
                lines.flush()
        finally:
            # After a mistake nothing more is asked for.
            pool.shutdown(cancel_futures=True)
    rows = [json.dumps(done[key]) + "\n" for key in plan.requests]
    files.write_text(out, "".join(rows))
    return len(missing)


def read_done(plan: Plan, out: Path) -> dict[Key, dict[str, Any]]:
    """The completions of the plan that a file has; the half line of a killed run is taken off.

    Raises:
      UserError: a line that is no completion, or one of another plan.
    """
    done: dict[Key, dict[str, Any]] = {}
    if not out.exists():
        return done
    lines = out.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            files.write_text(out, b"".join(lines[:-1]).decode())
            break
        try:
            row = json.loads(line)
            key = (row["benchmark"], row["temperature"], row["id"], row["sample"])
            is_same = row["prompt"] == plan.prompts[row["benchmark"], row["id"]]
        except (KeyError, TypeError, ValueError) as error:
            what = f"{out}:{number}: not a completion of what is asked ({error!r})"
            raise errors.UserError(f"{what}; give another file, or remove the line") from error
        if not is_same or key not in plan.requests:
            what = f"{out}:{number}: {row['benchmark']} {row['id']!r} is of other settings"
            raise errors.UserError(f"{what}; give another file")
        done[key] = row
    return done


def require_same(plan: Plan, server: Server, out: Path) -> None:
    """Writes beside `out` what its completions depend on; UserError where that was another."""
    settings = plan.settings
    now = {
        "served": server.model,
        "prompt": settings.prompt,
        "instruction": settings.instruction,
        "answer_prefix": settings.answer_prefix,
        "seed": settings.seed,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
        "context": plan.sampler.max_length,
        "stop_ids": list(plan.stops.ids),
    }
    if plan.stop_texts:  # older files have no word of it
        now["stop_texts"] = {name: list(texts) for name, texts in plan.stop_texts.items()}
    file = out.with_suffix(".settings.json")
    if out.exists() and file.exists():
        changes = errors.differences(files.read_json(file), now)
        if changes:
            what = f"{out} holds completions of other settings; give another file, or undo"
            raise errors.UserError([what, *changes.values()])
    files.write_json(file, now)


def _call(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The JSON that a URL answers; without a body it is only read.

    Raises:
      UserError: nothing answers, however often it is asked, or it refuses.
    """
    headers = {"Content-Type": "application/json"}
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    last = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT_S * 2 ** (attempt - 1))
        try:
            asked = urllib.request.Request(url, data, headers)
            with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.read()[:300].decode(errors='replace')}"
            # What it refuses it would refuse again; of a busy server that is not said.
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError) as error:
            last = errors.first_line(error)
    remedy = "start the server, or correct --url; what is sampled is kept"
    raise errors.UserError(f"{url}: no answer ({last}); {remedy}")


def main() -> None:
    cli.parse(required=["model", "benchmarks", "out"])
    asked = model_flags.settings()
    errors.raise_if_any(asked.mistakes("--"))
    out = folders.local_folder(str(_OUT.value), "--out")
    if out.suffix != ".jsonl":
        raise errors.UserError(
            f"--out={out} should be a file of predictions, with the ending .jsonl"
        )
    if not out.parent.is_dir():
        raise errors.UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    lm = model_flags.open_model(str(_MODEL.value))
    plan = planning.plan(asked, lm.tokenizer, lm.model, date=lm.date or today(), trained=lm.trained)
    evaluation.announce(plan.choice)
    longest = 0
    for request in plan.requests.values():
        longest = max(longest, len(request.prompt_ids) + request.max_new_tokens)
    server = find(_URL.value, _SERVED.value, longest)
    require_same(plan, server, out)
    n_new = generate(plan, server, out, _PARALLEL.value)
    print(f"{len(plan.requests)} completions in {out}, {n_new} of them new")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
