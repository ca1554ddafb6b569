"""The run of `launch` on rows with images: of a small Qwen2.5-VL text and merger are trained."""

import pathlib

from tests.image_checkpoint import image_checkpoint

CARDS = "cards(split={}, family=card, n={})"


def arguments(folder: pathlib.Path) -> tuple[str, ...]:
    """Its further arguments; the checkpoint is written to `folder`, which may have it already."""
    base = folder / "base"
    if not base.exists():
        image_checkpoint(base)
    return (
        f"--config.model.path={base}",
        "--config.model.init=checkpoint",
        f"--config.data.train={CARDS.format('train', 64)}",
        f"--config.data.heldout={CARDS.format('validation', 16)}",
        "--config.data.rows=fields",
        "--config.data.image_field=images",
        # What is not trained of the tower is in no checkpoint, and read again at each start.
        "--config.train.parts=text+merger",
    )
