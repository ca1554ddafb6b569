"""Each trained token of demonstrations under several checkpoints: probability, entropy, gradient.

python -m dft_jax.analysis.tokens --models=base=FOLDER,sft=RUN,dft=RUN --data=train.jsonl \
    --rows=gsm8k --prompt=plain --out=tokens

A model is a Hugging Face folder, a hub id, or a run directory (its newest checkpoint); a name may
stand before it. The others are compared with the first, and all must have its tokenizer. --data is
any data path: a file, a folder or hub dataset (its split `train`), `world(…)`. Rows may have
images, which --image_field and --image_folder are about, as the keys of config.data are. The
command prints the tokens that fell and rose most, and writes to --out

    tokens.npz      T trained tokens: token, example, position, and of each model p_NAME,
                    entropy_NAME, gradient_NAME
    summary.json    of each model: nll, mean p, entropy, shares of p, its histogram, mean gradients,
                    also by bin of p
    changed.csv     of each model and token type: count, mean p before and after, share that fell
                    below 0.01
    histogram.png   p in the paper's bins
    tokens.html     the first examples, their tokens coloured by p, and by its change

A token's gradient is the norm of the gradient of its loss with respect to its logits:
w · |onehot - p|, which is w · sqrt(1 - 2p + Σ_v p_v²), with the weight w = 1 for SFT and w = p for
DFT; tokens.npz has that of SFT. Σ_v p_v² is no estimate: twice the hidden states make twice the
logits, under which the target has a probability q, and p²/q = Σ_v p_v². It costs a second pass
through the head, forward only.

On TPUs and GPUs the command is the same. Batches are spread over all devices, --tensor=4 spreads
each copy of the parameters over four, and on a pod the command is started on every host (process 0
writes). Full logits are never made; the parameters of one model are in memory at a time, and on the
host three float32 numbers a token and model.
"""

from pathlib import Path

from absl import flags

from dft_jax.analysis import reading, token_report, token_scores
from dft_jax.commands import cli, model_flags
from dft_jax.data import account
from dft_jax.runtime import compilation_cache, environment, errors, folders, processes

_MODELS = flags.DEFINE_list(
    "models", None, "Checkpoints, each with name= before it or not, separated by commas."
)
_DATA = flags.DEFINE_string("data", None, "Demonstrations: file, folder, hub dataset, or world(…).")
_MIN_COUNT = flags.DEFINE_integer(
    "min_count", 5, "Occurrences of a token type that is listed as changed.", 1
)
_EXAMPLES = flags.DEFINE_integer("examples", 5, "Examples shown in tokens.html, the first ones.", 0)
# dft_jax.evaluate reads these too, with other words of help: there they are of --heldout.
flags.DEFINE_string(
    "rows", "fields", "What a row of --data means: data/formats.py.", allow_override=True
)
flags.DEFINE_string("prompt_field", "prompt", "With --rows=fields.", allow_override=True)
flags.DEFINE_string("completion_field", "completion", "With --rows=fields.", allow_override=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", allow_override=True)
for _name in ("prompt", "instruction", "context", "revision", "tensor", "compute_dtype"):
    flags.declare_key_flag(_name)
for _name in ("image_field", "image_folder", "image_min_pixels", "image_max_pixels"):
    flags.declare_key_flag(_name)


def read_models(arguments: list[str]) -> dict[str, str]:
    """Name -> path of each `name=path` or `path`; a path may have = in it."""
    paths = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        # No name stands before it, or what stands there is the beginning of a path.
        if not equals or "/" in name or Path(argument).exists():
            name = Path(argument).absolute().name
            path = argument
        if not name or not path:
            what = f"--models: {argument!r} should be a checkpoint, or name=checkpoint"
            raise errors.UserError(what)
        if name in paths:
            raise errors.UserError(f"--models: two are called {name!r}; name them: name=checkpoint")
        paths[name] = path
    return paths


def main() -> None:
    cli.parse(required=["models", "data", "out"])
    errors.raise_if_any(model_flags.idle(model_flags.OF_READING, ": nothing is sampled here"))
    model_flags.require_context()
    # They are required, so none is None.
    paths = read_models(_MODELS.value or [])
    out = folders.local_folder(_OUT.value or "", "--out")
    cli.join_processes()
    compilation_cache.keep_compilations()
    model_flags.refuse_idle_revision(list(paths.values()), flags.FLAGS.revision)
    models = {name: model_flags.open_model(path) for name, path in paths.items()}
    config = reading.config_for(models, model_flags.reading())
    examples = token_report.read_for_all(_DATA.value or "", models, config)
    with folders.locked(out, "--out"):
        account.tell("--data", examples.report, "--context")
        scores = {}
        for name, lm in models.items():
            scores[name] = token_scores.score(lm, examples, config, name)
            # One model's are in memory at a time.
            lm.forget_params()
        if not processes.is_first():
            return
        about = {
            "data": examples.report,
            "prompt": config.data.template,
            "date": config.data.date,
            "environment": environment.describe(),
            "checkpoints": {name: lm.identify() for name, lm in models.items()},
        }
        tokenizer = next(iter(models.values())).tokenizer
        remedy = "make room, or give another folder"
        with errors.user_errors(f"--out={out}: cannot be written", remedy):
            token_report.write(
                scores,
                examples,
                tokenizer,
                about,
                out,
                min_count=_MIN_COUNT.value,
                n_examples=_EXAMPLES.value,
            )


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
