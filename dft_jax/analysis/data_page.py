"""Examples as one page of HTML: what is read and what is trained, with pictures made small.

The page needs nothing else, and nothing in it can run: what the rows say is escaped.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dft_jax.data import images
from dft_jax.data.image_files import Picture
from dft_jax.data.templates import Example
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.runtime import errors, files

_SIDE = 192  # pixels of a picture on the page, at most
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1a1a1a; --grey: #6b6b6b;
  --trained: #bfe3c0; --image: #d6dbe8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #f2f2f2; --grey: #9a9a9a; --trained: #23562a;
    --image: #363d52; }
}
body { background: var(--page); color: var(--text); font: 15px/1.6 system-ui, sans-serif;
  margin: 2em; max-width: 70em; }
h2 { font-size: 1em; margin: 2em 0 0.5em; }
h2 small, figcaption { color: var(--grey); font-weight: normal; }
p { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { display: inline-block; margin: 0 1em 0 0; font-size: 0.8em; max-width: 16em; }
figcaption { overflow-wrap: anywhere; }
.trained { background: var(--trained); }
.image { background: var(--image); border-radius: 0.3em; padding: 0 0.4em; }
"""


def write(
    file: Path,
    title: str,
    origins: Sequence[str],
    examples: Sequence[Example],
    tokenizer: Tokenizer,
) -> None:
    """Writes the page.

    Args:
      title: what the examples are of.
      origins: file and line of each example.

    Raises:
      UserError: it cannot be written.
    """
    with errors.user_errors(f"{file} cannot be written", "name a file in a folder that is there"):
        files.write_text(file, page(title, origins, examples, tokenizer))


def page(
    title: str, origins: Sequence[str], examples: Sequence[Example], tokenizer: Tokenizer
) -> str:
    """The page as text; arguments as for `write`."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{_text(title)}</title>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>",
        '<div><span class="trained">trained</span> · read ·'
        ' <span class="image">image rows × columns of units</span></div>',
    ]
    for origin, example in zip(origins, examples, strict=True):
        n_trained = int(example.target_mask().sum())
        counts = f"{len(example.ids):,} tokens, {n_trained:,} trained"
        parts.append(f"<h2>{_text(origin)} <small>{counts}</small></h2>")
        parts += [_figure(picture) for picture in example.images]
        parts.append(f"<p>{_tokens(example, tokenizer)}</p>")
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def lines(origins: Sequence[str], examples: Sequence[Example]) -> list[str]:
    """The images of these examples for a terminal, a line each."""
    found = []
    for origin, example in zip(origins, examples, strict=True):
        for picture in example.images:
            found.append(f"{origin}: {picture.file.name}, {describe(picture)}")
    return found


def describe(picture: Picture) -> str:
    """Size, grid and tokens of a picture, in words.

    90 × 60 pixels (width × height), turned by EXIF: 4 × 6 patches, 6 tokens
    """
    turned = ", turned by EXIF" if picture.is_turned else ""
    n_rows, n_cols = picture.grid
    size = f"{picture.width} × {picture.height} pixels (width × height){turned}"
    return f"{size}: {n_rows} × {n_cols} patches (rows × columns), {picture.n_tokens:,} tokens"


def _figure(picture: Picture) -> str:
    """A picture made small, as it is seen, and what there is to say of it."""
    small = Image.fromarray(images.decode(picture.file.read()))
    small.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    small.save(content, "JPEG")
    data = base64.b64encode(content.getvalue()).decode()
    name = _text(picture.file.name)
    caption = f"{name}<br>{_text(describe(picture))}"
    source = f"data:image/jpeg;base64,{data}"
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{caption}</figcaption></figure>'


def _tokens(example: Example, tokenizer: Tokenizer) -> str:
    """The text of an example, its trained tokens marked and each image's as one.

    Runs of tokens are decoded together, so that characters of several tokens are whole.
    """
    # The first token is never a target.
    trained = np.concatenate([[False], example.target_mask()])
    is_image = example.ids == example.image_token
    kinds = np.where(is_image, "image", np.where(trained, "trained", ""))
    borders = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    pictures = iter(example.images)
    found = []
    for ids, (kind, *_) in zip(
        np.split(example.ids, borders), np.split(kinds, borders), strict=True
    ):
        text = _text(tokenizer.decode(ids))
        if kind == "image":
            n_rows, n_cols = next(pictures).units
            text = f"image {n_rows} × {n_cols} units"
        if kind:
            text = f'<span class="{kind}">{text}</span>'
        found.append(text)
    return "".join(found)


def _text(text: str) -> str:
    """Text as HTML has it; what is no character there is shown as one that is missing."""
    shown = "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
    return html.escape(shown)
