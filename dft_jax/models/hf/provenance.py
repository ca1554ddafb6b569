"""What an exported folder says of itself, in its dft_jax.json: which run and step it is of."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dft_jax.models.hf import card
from dft_jax.models.hf.card import Account
from dft_jax.runtime import files

PROVENANCE_NAME = "dft_jax.json"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where exported parameters come from, as far as a reader of the folder can use it."""

    objective: str = ""
    step: int | None = None
    # What it was trained under: data.template; empty where nobody says.
    template: str = ""
    template_text: str | None = None  # of a .jinja file
    date: str = ""  # YYYY-MM-DD, of a run whose template writes the date
    path: str = ""  # the base's, as the config had it
    revision: str = ""
    # or "random": then the source's weights, if it has any, are not where the run began
    init: str = "checkpoint"
    # what its checkpoints say: run_id, base
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    account: Account | None = None  # for the model card; None where it is not of a run

    def report(self) -> dict[str, Any]:
        """For dft_jax.json. `template` is what `--prompt` should be for the exported folder, empty
        where nobody says.
        """
        path = self.path
        if Path(path).is_absolute() or Path(path).is_dir():
            # Exports are published: a folder's name will do.
            path = Path(path).name
        template, digest = self.template, self.template_text
        if self.template_text is not None:
            # it has become the folder's own
            template = "tokenizer"
        if self.template_text:
            digest = hashlib.sha256(self.template_text.encode()).hexdigest()
        base = self.run.get("base") or {"revision": self.revision, "init": self.init}
        return {
            "format": 1,
            "objective": self.objective,
            "step": self.step,
            "template": template,
            "template_source": Path(self.template).name,
            "template_sha256": digest,
            "date": self.date,
            "run_id": self.run.get("run_id"),
            "base": base | {"path": path},
        }


def write(
    folder: Path,
    origin: Origin,
    source: Path,
    types: Mapping[str, Any] | None = None,
    library: str = "transformers",
) -> None:
    """Writes dft_jax.json and the model card.

    Args:
      source: the folder of the base.
      types: what is to be said of the weights' dtypes, if there is something.
      library: that loads the export, as in `card.text`.
    """
    about = origin.report() | dict(types or {})
    files.write_json(folder / PROVENANCE_NAME, about)
    files.write_text(folder / card.CARD_NAME, card.text(about, source, origin.account, library))


def provenance(folder: Path) -> dict[str, Any] | None:
    """What an export says of itself; None for another folder, or one from before there was that."""
    file = folder / PROVENANCE_NAME
    if not file.exists():
        return None
    return files.read_json(file)
