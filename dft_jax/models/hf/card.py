"""The model card of an export, its README.md: what the weights are of, for the Hub and for readers.

Cards are published, so nothing in them names a place on this machine: of each path the last name is
kept. What nobody knows is left out, or said to be unknown; nothing is guessed.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dft_jax.runtime import hub

CARD_NAME = "README.md"
_HELD_OUT = {
    "heldout/nll": "nll, nats a token",
    "heldout/mean_p": "mean p",
    "heldout/entropy": "entropy, nats",
    "heldout/token_accuracy": "token accuracy",
    "heldout/supervised_tokens": "tokens",
}
# What stands between the parts of a config's value or of an argument, of which each may be a path.
_BETWEEN = re.compile(r"(\s*[,:=()'\"|;]\s*)")
_LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclasses.dataclass(frozen=True)
class Account:
    """What a run's folder says of a training; empty values are of what it does not have."""

    objective: str = ""  # with all its parameters
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the config, by key
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # data_report.json
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # env.json
    before: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # held-out metrics, step 0
    after: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the same, of the export
    results: tuple[Mapping[str, Any], ...] = ()  # of scores.json, of the exported step


def text(
    about: Mapping[str, Any],
    source: Path,
    account: Account | None,
    library: str = "transformers",
) -> str:
    """The card.

    Args:
      library: that loads the export: "transformers", or "peft" of an adapter.
      about: the content of the export's dft_jax.json.
      source: the folder of the base.
      account: of the run, None where the weights are not those of a run.
    """
    parts = [_front_matter(about, source, account, library), f"# {_title(about, source, library)}"]
    if about["objective"]:
        objective = account.objective if account else about["objective"]
        parts.append(
            f"Fine-tuned by dft_jax with the objective `{objective}`,"
            f" {about['step']} steps. Prompts: `{about['template_source']}`."
        )
    else:
        parts.append("Written by dft_jax. Nothing here says how these weights were trained.")
    parts.append(_section("Base", _base(about, source)))
    if account is not None:
        parts.append(_section("Data", _data(account)))
        parts.append(_section("Metrics", _metrics(about, account)))
        parts.append(_section("Training", _training(account)))
    # An adapter is written in float32, and loses nothing.
    if "rounding" in about:
        parts.append(_section("Weights", _weights(about)))
    return "\n\n".join(parts) + "\n"


def without_places(value: str) -> str:
    """The text with each path that leads out of here, or begins at a root, cut to its last name."""
    parts = _BETWEEN.split(value)
    for number, part in enumerate(parts):
        # An address (hf://owner/name) has its separator before it.
        is_address = part.startswith("//") and not part.startswith("///")
        if part.startswith(("/", "~", "..")) and not is_address:
            parts[number] = part.rstrip("/").rpartition("/")[2]
    return "".join(parts)


def command(arguments: list[str]) -> str:
    """The command line that `sys.argv` is of, as a shell reads it."""
    if not arguments:
        return ""
    program = arguments[0]
    # The last folder of this name: a checkout may lie in one that is called the same.
    module = re.match(r"(?:.*/)?(dft_jax/.+?)(?:/__main__)?\.py$", program)
    words = ["python", without_places(program)]
    if module:
        words = ["python", "-m", module[1].replace("/", ".")]
    elif program.startswith("dft_jax."):
        words = ["python", "-m", program]
    words += [without_places(argument) for argument in arguments[1:]]
    return shlex.join(words)


def hub_id_of_base(about: Mapping[str, Any], source: Path) -> str:
    """The base's id on the Hub; empty where it was a folder that is no snapshot of it."""
    base = about["base"]
    if base.get("revision") and "/" in str(base.get("path")):
        return str(base["path"]).removeprefix(hub.PREFIX)
    return hub.id_of_snapshot(source) or ""


def _title(about: Mapping[str, Any], source: Path, library: str) -> str:
    name = _name_of_base(about, source).rpartition("/")[2]
    if library == "peft":
        name = f"Adapter of {name}"
    if not about["objective"]:
        return name
    objective = about["objective"].partition("(")[0]
    return f"{name}, fine-tuned with {objective}"


def _name_of_base(about: Mapping[str, Any], source: Path) -> str:
    return hub_id_of_base(about, source) or about["base"].get("path") or source.name


def _front_matter(
    about: Mapping[str, Any], source: Path, account: Account | None, library: str
) -> str:
    """What the Hub reads. Strings are written as JSON has them, which YAML reads alike."""
    fields: dict[str, Any] = {}
    hub_id = hub_id_of_base(about, source)
    # Random weights are of no other model, even where its shape is.
    is_trained_from = about["base"].get("init") != "random"
    if hub_id and is_trained_from:
        fields["base_model"] = hub_id
    if account is not None:
        sources = _sources(account.data.get("train", {})).values()
        datasets = [_hub_id(report) for report in sources]
        if any(datasets):
            fields["datasets"] = sorted(set(filter(None, datasets)))
    fields["library_name"] = library
    fields["pipeline_tag"] = "text-generation"
    if is_trained_from:
        fields |= licence(source)
    fields["tags"] = ["dft_jax"]
    if about["objective"]:
        fields["tags"] += ["fine-tuning", about["objective"].partition("(")[0]]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def licence(source: Path) -> dict[str, str]:
    """What the base's own card says of its licence; empty where it has no card or says nothing."""
    file = source / CARD_NAME
    if not file.is_file():
        return {}
    found: dict[str, str] = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    for line in lines[1:]:
        if line.strip() == "---":
            return found
        key, _, value = line.partition(":")
        value = value.strip().strip("'\"")
        if key in _LICENCE_KEYS and value:
            found[key] = value
    # A front matter without an end is none.
    return {}


def _base(about: Mapping[str, Any], source: Path) -> str:
    base = about["base"]
    lines = [("model", _name_of_base(about, source))]
    if base.get("init") == "random":
        lines.append(("weights", "none of it: drawn at random, in the shape of this model"))
    lines += [
        ("revision", base.get("revision")),
        ("commit", base.get("commit")),
        ("SHA-256 of the weights", base.get("sha256")),
    ]
    return _list(lines)


def _sources(report: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The account of each source by its name, of which a mixture has several."""
    if "sources" in report:
        return report["sources"]
    return {"": report}


def _hub_id(report: Mapping[str, Any]) -> str:
    """The id of a source that is a dataset of the Hub; empty of any other."""
    hub_id = str(report.get("path", "")).removeprefix(hub.PREFIX)
    if report.get("commit") and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub_id):
        return hub_id
    return ""


def _data(account: Account) -> str:
    train = account.data.get("train", {})
    length = account.data.get("length", {})
    parts = [_source(name, report) for name, report in _sources(train).items()]
    lines = [
        ("SHA-256 of tokens and masks", train.get("sha256")),
        ("examples", length.get("n_examples")),
        ("epochs", length.get("epochs")),
    ]
    heldout = account.data.get("heldout")
    if heldout:
        places = [_place(report) for report in _sources(heldout).values()]
        lines.append(("held out", ", ".join(places)))
        lines.append(("SHA-256 of the held-out tokens and masks", heldout["sha256"]))
    return "\n\n".join([*parts, _list(lines)])


def _place(report: Mapping[str, Any]) -> str:
    return _hub_id(report) or without_places(str(report.get("path", "")))


def _source(name: str, report: Mapping[str, Any]) -> str:
    """Where a source is from, and what was read of it."""
    rows, tokens = report.get("rows", {}), report.get("tokens", {})
    dropped = rows.get("dropped", {})
    lines = [
        ("source", name),
        ("data", _place(report)),
        ("commit", report.get("commit")),
        ("rows read", rows.get("read")),
        ("rows used whole", rows.get("used_whole")),
        ("rows cut", rows.get("truncated")),
        ("rows dropped", ", ".join(f"{n} {why}" for why, n in dropped.items())),
        ("tokens trained", tokens.get("supervised")),
    ]
    if name:
        lines.append(("SHA-256 of its tokens and masks", report.get("sha256")))
    return _list(lines)


def _metrics(about: Mapping[str, Any], account: Account) -> str:
    parts = []
    if account.after:
        rows = []
        for name, meaning in _HELD_OUT.items():
            if name in account.after:
                values = [_shown(account.before.get(name)), _shown(account.after[name])]
                rows.append([meaning, *values])
        head = ["held out", "before training", f"step {about['step']}"]
        parts.append(_table([head, *rows]))
        parts.append("Means over the tokens of one run; nothing here says how seeds vary.")
    rows = [_row_of(result) for result in account.results]
    if rows:
        head = ["benchmark", "temperature", "samples", "mean, %", "95 % interval over problems"]
        parts.append(_table([head, *rows]))
    if not parts:
        return "None of this step is in the run's folder."
    return "\n\n".join(parts)


def _row_of(result: Mapping[str, Any]) -> list[str]:
    average = result["avg_at_k"]
    ends = average["interval_95"]
    interval = "unknown"
    if ends:
        interval = f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
    temperature = f"{result['temperature']:g}"
    mean = f"{100 * average['mean']:.1f}"
    return [result["benchmark"], temperature, str(average["k"]), mean, interval]


def _training(account: Account) -> str:
    environment = account.environment
    lines = []
    for key, value in sorted(account.settings.items()):
        # A list of sources has paths in it, between its quotes.
        lines.append(f"{key} = {without_places(repr(value))}")
    parts = [_block(lines)]
    if environment:
        versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items())
        devices = environment["devices"]
        git = environment.get("git") or {}
        parts.append(
            _list(
                [
                    ("dft_jax", environment.get("dft_jax")),
                    ("its commit", git.get("commit")),
                    ("changed since", git.get("dirty") and "yes"),
                    ("Python", environment.get("python")),
                    ("versions", versions),
                    ("devices", f"{devices['count']} × {devices['kind']}"),
                ]
            )
        )
        parts.append("The command, with paths cut to their last names:")
        parts.append(_block([command(environment.get("command", []))]))
    return "\n\n".join(parts)


def _weights(about: Mapping[str, Any]) -> str:
    share = about["rounding"]["lost_share"]
    lost = "not finite: the dtype cannot hold some of the weights"
    if share is not None:
        lost = f"{share:.2%} of the norm of what was trained"
    return _list([("dtype", about["dtype"]), ("lost to rounding", lost)])


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}"


def _list(lines: list[tuple[str, Any]]) -> str:
    """A line for each value that is known."""
    known = [(name, value) for name, value in lines if value not in (None, "", False)]
    return "\n".join(f"- {name}: {_plain(value)}" for name, value in known)


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(value: Any) -> str:
    """On one line, and no cell of a table ends in it."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _block(lines: list[str]) -> str:
    """Text as it is: whatever the lines have in them, the fence is longer."""
    body = "\n".join(lines)
    longest = max(map(len, re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{body}\n{fence}"
