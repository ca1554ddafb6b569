"""The command `python -m dft_jax.generate`: its flags, what is wrong with them, and which way it
goes: completions of prompts, or a chat.
"""

import math
import sys

from absl import flags

from dft_jax.commands import asked_prompts, chat, cli, completing, model_flags
from dft_jax.data.templates import AUTO, Template, name_problems, today
from dft_jax.evals import evaluation, prompts
from dft_jax.lm.language_model import LM
from dft_jax.lm.run import NEWEST, require_step
from dft_jax.runtime import compilation_cache, errors

# Its own: --prompt and --temperature are other things to the commands that evaluate.
FLAGS = flags.FlagValues()
# How a model is opened is the same for all of them.
_SHARED = ("revision", "base", "tensor", "compute_dtype")

flags.DEFINE_string(
    "model", None, "Hugging Face folder, hub id, PEFT adapter, or run directory.", flag_values=FLAGS
)
flags.DEFINE_string(
    "step", NEWEST, "Of a run: newest, best, or the number of a step.", flag_values=FLAGS
)
flags.DEFINE_string(
    "prompt", None, "A text to complete. Without it and --file: a chat.", flag_values=FLAGS
)
flags.DEFINE_string("file", None, "Prompts: JSON lines, or a text.", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "image",
    [],
    "A picture that is shown before --prompt, to a model with images. May be repeated.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "template",
    AUTO,
    "How a prompt is put: auto (as the model was trained, else its chat template), tokenizer, raw"
    " (as it is), a name of data/templates.py, or a .jinja file.",
    flag_values=FLAGS,
)
flags.DEFINE_string("system", "", "A message before each prompt's own.", flag_values=FLAGS)
flags.DEFINE_integer("n", 1, "Completions of each prompt.", 1, flag_values=FLAGS)
flags.DEFINE_float("temperature", 1.0, "0 is greedy, and needs --n=1.", 0, 10, flag_values=FLAGS)
flags.DEFINE_integer(
    "top_k", 0, "Sample from the k most probable tokens; 0 for all.", 0, flag_values=FLAGS
)
flags.DEFINE_float(
    "top_p",
    1.0,
    "Sample from the fewest tokens that hold this share of the probability.",
    1e-9,
    1,
    flag_values=FLAGS,
)
flags.DEFINE_integer("max_new_tokens", 512, "The longest completion.", 1, flag_values=FLAGS)
flags.DEFINE_integer(
    "context",
    4096,
    "Tokens of prompt and completion, at most; the model's own limit may be lower.",
    2,
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "stop",
    [],
    "A text that ends a completion, and is not part of it; \\n is a new line. May be repeated.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("seed", 0, "Of the sampling noise.", 0, 2**32 - 1, flag_values=FLAGS)
flags.DEFINE_bool("json", False, "Write a line of JSON for each completion.", flag_values=FLAGS)


def _share_flags() -> None:
    """Those of model_flags, which reads them: it is one object under both."""
    for name in _SHARED:
        FLAGS[name] = flags.FLAGS[name]
        FLAGS.register_flag_by_module(model_flags.__name__, FLAGS[name])


_share_flags()


def main() -> None:
    cli.parse(required=["model"], known=FLAGS)
    # They are read there, and have been parsed here.
    flags.FLAGS.mark_as_parsed()
    is_chat = FLAGS.prompt is None and FLAGS.file is None
    errors.raise_if_any(_mistakes(is_chat))
    require_step(FLAGS.step)
    asked = []
    if not is_chat:
        asked = asked_prompts.read_prompts(FLAGS.prompt, FLAGS.file, FLAGS.system, FLAGS.image)
    compilation_cache.keep_compilations()
    model_flags.refuse_idle_revision([FLAGS.model], FLAGS.revision)
    lm = model_flags.open_model(FLAGS.model, FLAGS.step)
    if FLAGS.image:
        lm = lm.with_images()
    template = _template(lm)
    settings = _settings()
    try:
        if is_chat:
            chat.Chat(lm, template, settings, system=FLAGS.system).run()
        else:
            completing.complete(lm, template, settings, asked, as_json=FLAGS.json)
    except KeyboardInterrupt:
        # What was written is all that was wanted.
        print()
        sys.exit(130)


def _settings() -> completing.Settings:
    stop = []
    for text in FLAGS.stop:
        stop.append(text.replace("\\n", "\n").replace("\\t", "\t"))
    return completing.Settings(
        n=FLAGS.n,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        max_new_tokens=FLAGS.max_new_tokens,
        context=FLAGS.context,
        stop=tuple(stop),
        seed=FLAGS.seed,
    )


def _template(lm: LM) -> Template:
    """How prompts are put, announced on stderr."""
    choice = prompts.choose(FLAGS.template, lm.trained, lm.tokenizer, setting="--template")
    template = Template(
        choice.name,
        lm.tokenizer,
        setting="--template",
        date=lm.date or today(),
        vision=lm.model.config.vision,
    )
    if FLAGS.system and template.jinja is None:
        what = f"--system has no place under --template={choice.name}, which takes one question"
        raise errors.UserError(f"{what}; give a chat template, or leave it out")
    print(f"model: {lm.what}", file=sys.stderr)
    evaluation.announce(choice)
    return template


def _mistakes(is_chat: bool) -> list[str]:
    """What is wrong between flags, a line each."""
    found = _prompt_mistakes()
    if "" in FLAGS.stop:
        found.append("--stop is empty, and would end every completion at once; leave it out")
    if FLAGS.temperature == 0 and FLAGS.n > 1:
        found.append(
            f"--n={FLAGS.n} with --temperature=0: greedily all completions are one; give --n=1"
        )
    found += asked_prompts.not_utf8("prompt", [FLAGS.prompt or ""])
    found += asked_prompts.not_utf8("system", [FLAGS.system])
    found += asked_prompts.not_utf8("stop", FLAGS.stop)
    for name in ("temperature", "top_p"):
        # A flag's range lets it through.
        value = FLAGS[name].value
        if value is not None and math.isnan(value):
            found.append(f"--{name}=nan is no number; give one, or leave it out")
    if FLAGS.template != AUTO:
        found += name_problems("--template", FLAGS.template)
    if is_chat:
        found += _chat_mistakes()
    return found


def _prompt_mistakes() -> list[str]:
    found = []
    if FLAGS.prompt is not None and FLAGS.file is not None:
        found.append("--prompt and --file both say what is completed; give one of them")
    if FLAGS.prompt == "":
        found.append("--prompt is empty; give a text, or leave it out for a chat")
    if FLAGS.file is not None:
        found += asked_prompts.absent(FLAGS.file)
    if FLAGS.image and FLAGS.prompt is None:
        found.append("--image is shown before --prompt, and there is none; give --prompt=TEXT")
    return found


def _chat_mistakes() -> list[str]:
    found = []
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        found.append(
            "nothing to complete: give --prompt=TEXT or --file=FILE; a chat needs a terminal"
        )
    if FLAGS.json:
        found.append("--json has no effect in a chat; give --prompt or --file, or remove it")
    if FLAGS.n > 1:
        found.append(f"--n={FLAGS.n} has no effect in a chat; /again gives another answer")
    return found
