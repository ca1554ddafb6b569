"""The page of examples: what is trained, pictures, and nothing that could run."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from dft_jax import config as config_lib
from dft_jax.analysis import data_page, packed_rows
from dft_jax.data.examples import load_examples
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.runtime import errors
from dft_jax.types import Batch
from tests import vision_folder
from tests.vision_folder import IMAGE, png

HOSTILE = "<script>alert('a')</script> & \"<b>\" \x07"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(tokenizer, examples with an image and hostile text)."""
    folder = tmp_path_factory.mktemp("page")
    base = vision_folder.write(folder / "base")
    name = "<i>.png"
    (folder / name).write_bytes(png(300, 500))
    rows = [
        {"prompt": f"{HOSTILE}?", "completion": "<u>2</u>", "image": name},
        {"prompt": "3?", "completion": "4", "image": None},
    ]
    (folder / "<a>.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = config_lib.get_default().data
    data.update({"image_field": "image", "image_max_pixels": 56 * 84})
    tokenizer, spec = load_tokenizer(base), read_config(base).vision
    path = str(folder / "<a>.jsonl")
    return tokenizer, load_examples(path, data, tokenizer, 300, vision=spec, source=base)


class Parsed(html.parser.HTMLParser):
    """The tags, the text in each class of span, and the text of the whole."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.spans, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "br", "meta"):
            self.open.append((tag, dict(attrs).get("class", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, class_ = self.open[-1] if self.open else ("", "")
        if tag in ("span", "p"):
            self.spans.append((class_, data))


def test_the_page_shows_what_is_trained_and_escapes_all_that_rows_say(opened, tmp_path):
    tokenizer, examples = opened
    file = tmp_path / "page.html"
    data_page.write(file, "A <title>", examples.origins, examples.examples, tokenizer)
    page = Parsed(file.read_text(encoding="utf-8"))
    assert not {"script", "b", "i", "u", "a"} & set(page.tags)
    assert page.tags.count("figure") == 1 and page.tags.count("h2") == 2
    texts = [(class_, text) for class_, text in page.spans if class_]
    assert texts[2:] == [
        ("image", "image 1 × 3 units"),
        ("trained", "<u>2</u><|endoftext|>"),
        ("trained", "4<|endoftext|>"),
    ]
    read = "".join(text for class_, text in page.spans if not class_)
    assert HOSTILE.replace("\x07", "\ufffd") in read


def test_pictures_are_small_and_in_the_page(opened):
    tokenizer, examples = opened
    page = Parsed(data_page.page("t", examples.origins, examples.examples, tokenizer))
    [image] = page.images
    kind, content = image["src"].split(",")
    assert kind == "data:image/jpeg;base64" and image["alt"] == "<i>.png"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (192, 115)


def test_the_images_of_a_terminal(opened):
    _, examples = opened
    assert data_page.lines(examples.origins, examples.examples) == [
        "<a>.jsonl:1: <i>.png, 500 × 300 pixels (width × height): 2 × 6 patches (rows × columns),"
        " 3 tokens"
    ]


def test_a_page_that_cannot_be_written(opened, tmp_path):
    tokenizer, examples = opened
    with pytest.raises(errors.UserError, match="cannot be written"):
        data_page.write(
            tmp_path / "none" / "a.html", "t", examples.origins, examples.examples, tokenizer
        )


def test_a_packed_row_has_the_number_of_an_images_tokens(opened):
    tokenizer, examples = opened
    ids = examples.examples[0].ids[None]
    mask = examples.examples[0].target_mask()[None]
    ones = np.ones_like(ids[:, 1:])
    batch = Batch(ids[:, :-1], ids[:, 1:], mask, ones, ones)
    shown = packed_rows.row_as_text(batch, 0, tokenizer, IMAGE)
    assert "[image: 3 tokens]" in shown and "<|image_pad|>" not in shown
    assert "<|image_pad|><|image_pad|>" in packed_rows.row_as_text(batch, 0, tokenizer)
