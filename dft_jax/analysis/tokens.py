"""Each trained token of some demonstrations under several checkpoints: its probability, entropy and
gradient.

python -m dft_jax.analysis.tokens --models=base=FOLDER,sft=RUN,dft=RUN --data=train.jsonl --rows=gsm8k \
    --prompt=plain --out=tokens

A model is a Hugging Face folder, a hub id, or a run directory (its newest checkpoint); a name may
stand before it. The others are compared with the first, and all must have its tokenizer. --data is
any data path: a file, a folder or hub dataset (its split `train`), `world(…)`. The command prints
the tokens that fell and rose most, and writes to --out

    tokens.npz      T trained tokens: token, example, position, and p_NAME, entropy_NAME, gradient_NAME of each model
    summary.json    of each model: nll, mean p, entropy, shares of p, its histogram, mean gradients, also by bin of p
    changed.csv     of each model and token type: count, mean p before and after, share that fell below 0.01
    histogram.png   p in the paper's bins
    tokens.html     the first examples, their tokens coloured by p, and by its change

A token's gradient is the norm of the gradient of its loss with respect to its logits:
w · |onehot - p|, which is w · sqrt(1 - 2p + Σ_v p_v²), with the weight w = 1 for SFT and w = p for
DFT; tokens.npz has that of SFT. Σ_v p_v² is no estimate: twice the hidden states make twice the logits,
under which the target has a probability q, p²/q = Σ_v p_v². It costs a second pass through the
head, forward only.

On TPUs and GPUs the command is the same. Batches are spread over all devices, --tensor=4 spreads
each copy of the parameters over four, and on a pod the command is started on every host with
--distributed (process 0 writes). Full logits are never made; the parameters of one model are in
memory at a time, and on the host three float32 numbers a token and model.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from tqdm import tqdm

from dft_jax import evaluate, sharding
from dft_jax.analysis import figures
from dft_jax.analysis.compare import write_csv
from dft_jax.commands import cli
from dft_jax.data import account, batches as loader
from dft_jax.evals.report import aligned
from dft_jax.losses import fused
from dft_jax.models.model import head, with_attention
from dft_jax.runtime import compilation_cache, environment, errors, files, folders
from dft_jax.training import metrics
from dft_jax.training.loop import matmul_precision
from dft_jax.types import Batch

_MODELS = flags.DEFINE_list(
    "models", None, "Checkpoints, each with name= before it or not, separated by commas."
)
_DATA = flags.DEFINE_string("data", None, "Demonstrations: file, folder, hub dataset, or world(…).")
_MIN_COUNT = flags.DEFINE_integer(
    "min_count", 5, "Occurrences of a token type that is listed as changed.", 1
)
_EXAMPLES = flags.DEFINE_integer("examples", 5, "Examples shown in tokens.html, the first ones.", 0)
# dft_jax.evaluate has these too, and says other words of them.
flags.DEFINE_string(
    "rows", "fields", "What a row of --data means: data/formats.py.", allow_override=True
)
flags.DEFINE_string("prompt_field", "prompt", "With --rows=fields.", allow_override=True)
flags.DEFINE_string("completion_field", "completion", "With --rows=fields.", allow_override=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", allow_override=True)
for _name in ("prompt", "instruction", "context", "revision", "tensor", "compute_dtype"):
    flags.declare_key_flag(_name)

_TOP = 10  # token types printed each way
_CHANGED_COLUMNS = "model token_id token count p_before p_after change fell_below_0.01".split()


@dataclasses.dataclass(frozen=True)
class Scores:
    """The T trained tokens of all examples under one checkpoint, float32, in the order of the data."""

    logp_T: np.ndarray
    entropy_T: np.ndarray
    gradient_T: np.ndarray  # of SFT; that of DFT is p times as large

    @property
    def p_T(self) -> np.ndarray:
        return np.exp(self.logp_T)


def gradient_norm(logp: Float[Array, "*s"], logp_doubled: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """|onehot - p|, from the target's log p under the logits and under twice the logits.

    The square is (1 - p)² + Σ_{v≠target} p_v², of which the sum is (p²/q)(1 - q). That sum is at
    most (1 - p)², and is held there: near p = 1 rounding would make it many times as large. So the
    result is off by less than 0.001 everywhere.
    """
    target = -jnp.expm1(logp)
    others = jnp.exp(2 * logp - logp_doubled) * -jnp.expm1(logp_doubled)
    return jnp.sqrt(target**2 + jnp.clip(others, 0, target**2))


def numbered(examples: loader.Examples) -> loader.Examples:
    """The same examples with the number of each trained token, 0 … T - 1, in the place of its id.

    They are packed just as the real ones are, so they say where in a batch each token lies.
    """
    trained = np.concatenate([figures.targets(example) for example in examples.examples])
    ends = np.cumsum([len(example.ids) for example in examples.examples])[:-1]
    ids_of = np.split((np.cumsum(trained) - 1).astype(np.int32), ends)
    pairs = zip(examples.examples, ids_of, strict=True)
    replaced = [dataclasses.replace(example, ids=ids) for example, ids in pairs]
    return loader.Examples(replaced, examples.report, examples.origins)


def score(
    opened: evaluate.Opened, examples: loader.Examples, config: ConfigDict, name: str
) -> Scores:
    """Reads the examples once; the parameters are loaded here and gone afterwards."""
    model = with_attention(opened.model, config.model.attention)

    @functools.partial(jax.jit, out_shardings=sharding.named(model.mesh))
    def score_batch(params, batch: Batch, numbers: Batch):
        batch, numbers = jax.tree.map(lambda x_ABL: x_ABL[0], (batch, numbers))
        hidden_BLD = model.apply(params, batch)

        def stats(hidden_BLD):
            where = (batch.targets_BL, batch.mask_BL, batch.segments_BL)
            how = dict(chunk_tokens=config.train.loss_chunk_tokens, mesh=model.mesh)
            return fused.token_stats(hidden_BLD, head(params), *where, **how)

        own = stats(hidden_BLD)
        gradient_BL = gradient_norm(own.logp_BL, stats(2 * hidden_BLD).logp_BL)
        return batch.mask_BL, numbers.targets_BL, (own.logp_BL, own.entropy_BL, gradient_BL)

    sizes = dict(global_batch=config.train.global_batch, row_length=loader.row_length(config.data))
    passes = [
        loader.SequentialBatches(e, model.mesh, **sizes) for e in (examples, numbered(examples))
    ]
    scores_3T = np.empty((3, examples.report["tokens"]["supervised"]), np.float32)
    params = opened.load()
    quiet = jax.process_index() > 0 or None  # None is quiet unless stderr is a terminal
    with matmul_precision(str(model.module.compute_dtype)):
        for pair in tqdm(
            zip(*passes, strict=True), desc=name, total=len(passes[0]), unit="batch", disable=quiet
        ):
            batches = (sharding.device_batch(step.batch, model.mesh, step.n_rows) for step in pair)
            mask_BL, number_BL, values = jax.device_get(score_batch(params, *batches))
            scores_3T[:, number_BL[mask_BL]] = [value_BL[mask_BL] for value_BL in values]
    if not np.isfinite(scores_3T).all():
        raise errors.UserError(
            f"{name}: its probabilities are not finite numbers; did the run diverge? Leave it out"
        )
    return Scores(*scores_3T)


def summarise(scores: Scores) -> dict[str, Any]:
    """Means over the tokens, and by bin of p (None where a bin is empty)."""
    p_T = scores.p_T
    dft_T = p_T * scores.gradient_T
    bin_T = figures.bin_of(p_T)
    count = np.bincount(bin_T, minlength=figures.N_BINS)

    def by_bin(x_T):
        sums = np.bincount(bin_T, weights=x_T, minlength=figures.N_BINS)
        return [float(total / n) if n else None for total, n in zip(sums, count, strict=True)]

    def mean(x_T):
        return float(np.mean(x_T, dtype=np.float64))

    return {
        "tokens": len(p_T),
        "nll": mean(-scores.logp_T),
        "mean_p": mean(p_T),
        "entropy": mean(scores.entropy_T),
        "share_of_p_below_0.01": mean(p_T < np.float32(0.01)),
        "share_of_p_above_0.95": mean(p_T > np.float32(0.95)),
        "p_histogram": (count / len(p_T)).tolist(),
        "sft_gradient": mean(scores.gradient_T),
        "dft_gradient": mean(dft_T),
        "sft_gradient_by_bin": by_bin(scores.gradient_T),
        "dft_gradient_by_bin": by_bin(dft_T),
    }


def changed(
    name: str, token_T: np.ndarray, before: Scores, after: Scores, text_of: Callable[[int], str]
) -> list[dict]:
    """A row of `_CHANGED_COLUMNS` for each token type, most fallen first."""
    ids, type_T, count = np.unique(token_T, return_inverse=True, return_counts=True)
    fell_T = (before.p_T >= np.float32(0.01)) & (after.p_T < np.float32(0.01))
    means = [np.bincount(type_T, weights=x_T) / count for x_T in (before.p_T, after.p_T, fell_T)]
    rows = []
    for id_, n, p_before, p_after, fell in zip(
        ids.tolist(), count.tolist(), *(m.tolist() for m in means), strict=True
    ):
        values = (name, id_, text_of(id_), n, p_before, p_after, p_after - p_before, fell)
        rows.append(dict(zip(_CHANGED_COLUMNS, values, strict=True)))
    return sorted(rows, key=lambda row: row["change"])


def summary_table(summaries: dict[str, dict[str, Any]]) -> str:
    """A line for each model."""
    columns = "tokens nll mean_p entropy share_of_p_below_0.01 share_of_p_above_0.95 sft_gradient dft_gradient".split()
    lines = [
        [name, *(f"{values[column]:.6g}" for column in columns)]
        for name, values in summaries.items()
    ]
    return aligned([["model", *columns], *lines])


def changes_table(rows: list[dict[str, Any]]) -> str:
    """The token types that fell most, then those that rose most, of rows in the order of `changed`."""
    lines = [["", "token", "count", "p before", "p after", "change", "fell below 0.01"]]
    fallen, risen = ([row for row in rows if sign * row["change"] > 0] for sign in (-1, 1))
    for word, shown in (("fell", fallen[:_TOP]), ("rose", risen[: -_TOP - 1 : -1])):
        for row in shown:
            shares = [f"{row['p_before']:.4f}", f"{row['p_after']:.4f}", f"{row['change']:+.4f}"]
            lines.append(
                [
                    word,
                    repr(row["token"]),
                    str(row["count"]),
                    *shares,
                    f"{row['fell_below_0.01']:.1%}",
                ]
            )
    return aligned(lines)


def read_models(arguments: list[str]) -> dict[str, str]:
    """Name -> path of each `name=path` or `path`; a path may have = in it."""
    paths = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or "/" in name or Path(argument).exists():
            name, path = Path(argument).absolute().name, argument
        if not name or not path:
            raise errors.UserError(
                f"--models: {argument!r} should be a checkpoint, or name=checkpoint"
            )
        if name in paths:
            raise errors.UserError(f"--models: two are called {name!r}; name them: name=checkpoint")
        paths[name] = path
    return paths


def read_examples(
    path: str, opened: dict[str, evaluate.Opened], config: ConfigDict
) -> loader.Examples:
    """The examples of --data, refused where they are not the same tokens to every model."""
    first, *others = opened

    def read(name: str) -> loader.Examples:
        model, tokenizer = opened[name].model, opened[name].tokenizer
        return loader.load_examples(path, config.data, tokenizer, model.config.vocab_size)

    examples = read(first)
    for name in others:
        if read(name).report["sha256"] != examples.report["sha256"]:
            what = f"--models: {first} and {name} have different tokenizers or chat templates"
            raise errors.UserError(
                f"{what}: {path} is other tokens to each; give models that share one"
            )
    return examples


def settings(opened: dict[str, evaluate.Opened]) -> ConfigDict:
    """The config that the flags stand for, with a length that every model can read."""
    errors.raise_if_any(
        [line for line in evaluate.settings().mistakes("--") if line.startswith("--context")]
    )
    return evaluate.reading_config(opened)


def report(
    scores: dict[str, Scores],
    examples: loader.Examples,
    tokenizer,
    about: dict[str, Any],
    out: Path,
) -> None:
    """Prints the tables and writes the files."""
    (first, before), *others = scores.items()
    where = [
        np.flatnonzero(figures.targets(example)).astype(np.int32) for example in examples.examples
    ]
    token_T = np.concatenate(
        [example.ids[i] for example, i in zip(examples.examples, where, strict=True)]
    )
    arrays = {"token": token_T, "position": np.concatenate(where)}
    arrays["example"] = np.repeat(np.arange(len(where), dtype=np.int32), list(map(len, where)))
    for name, own in scores.items():
        arrays |= {
            f"p_{name}": own.p_T,
            f"entropy_{name}": own.entropy_T,
            f"gradient_{name}": own.gradient_T,
        }
    summaries = {name: summarise(own) for name, own in scores.items()}
    text_of = functools.cache(lambda id_: figures.token_text(id_, tokenizer))
    rows_of = {
        name: [
            row
            for row in changed(name, token_T, before, own, text_of)
            if row["count"] >= _MIN_COUNT.value
        ]
        for name, own in others
    }
    shares = {name: each["p_histogram"] for name, each in summaries.items()}

    _save(out / "tokens.npz", lambda handle: np.savez_compressed(handle, **arrays))
    files.write_json(
        out / "summary.json", about | {"p_bin_edges": metrics.P_BIN_EDGES, "models": summaries}
    )
    write_csv(
        [row for rows in rows_of.values() for row in rows], out / "changed.csv", _CHANGED_COLUMNS
    )
    _save(out / "histogram.png", lambda handle: figures.plot_histogram(shares, handle))
    shown = {name: (own.p_T, own.entropy_T) for name, own in scores.items()}
    page = figures.token_page(shown, examples.examples[: _EXAMPLES.value], tokenizer)
    files.write_text(out / "tokens.html", page)
    print(summary_table(summaries))
    for name, rows in rows_of.items():
        print(f"\n{name} against {first}\n{changes_table(rows)}")
    print(f"\n{out}: tokens.npz, summary.json, changed.csv, histogram.png, tokens.html")


def _save(file: Path, save: Callable[[BinaryIO], None]) -> None:
    content = io.BytesIO()
    save(content)
    files.write_atomically(file, content.getvalue())


def main() -> None:
    cli.parse(required=["models", "data", "out"])
    paths, out = read_models(_MODELS.value), folders.local_folder(_OUT.value, "--out")
    cli.join_processes()
    compilation_cache.keep_compilations()
    given = [flags.FLAGS[name].value for name in ("revision", "tensor", "compute_dtype")]
    evaluate.refuse_idle_revision(list(paths.values()), given[0])
    opened = {name: evaluate.open_model(path, *given) for name, path in paths.items()}
    config = settings(opened)
    examples = read_examples(_DATA.value, opened, config)
    with folders.locked(out, "--out"):
        account.tell("--data", examples.report, "--context")
        scores = {name: score(each, examples, config, name) for name, each in opened.items()}
        if jax.process_index() == 0:
            about = {
                "data": examples.report,
                "prompt": config.data.template,
                "date": config.data.date,
            }
            about["environment"] = environment.describe()
            about["checkpoints"] = {name: each.identify() for name, each in opened.items()}
            with errors.user_errors(
                f"--out={out}: cannot be written", "make room, or give another folder"
            ):
                report(scores, examples, next(iter(opened.values())).tokenizer, about, out)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
