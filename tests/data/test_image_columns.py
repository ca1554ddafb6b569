"""What row formats make of rows with images, and which of these they refuse."""

import base64

import pytest

from dft_jax import config as config_lib
from dft_jax.data import formats, images
from dft_jax.data.image_files import ImageFile
from dft_jax.data.messages import images_of, text_of
from dft_jax.data.sources.rows import BadRow, Row

PNG = b"\x89PNG of a test"
IN_BASE64 = base64.b64encode(PNG).decode()


def read(row, **changes):
    """The conversation of a row as a list of (role, content), an image being its file."""
    config = config_lib.get_default().data
    config.update(changes)
    found = []
    for message in formats.read(Row("a.jsonl:1", row), config).messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part.get("image", part.get("text")) for part in content]
        found.append((message["role"], content))
    return found


def conversation(*parts, answer="2", **columns):
    turns = [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | columns


def text(words):
    return {"type": "text", "text": words}


def marked(words, answer="2", **columns):
    turns = [{"from": "human", "value": words}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} | columns


@pytest.mark.parametrize(
    "part, expected",
    [
        ({"image": "a.png"}, ImageFile("a.png")),
        ({"path": "in/a.png", "text": None}, ImageFile("in/a.png")),
        ({"url": "a.png"}, ImageFile("a.png")),
        ({"image": PNG}, ImageFile("the image of message 0", PNG)),
        ({"bytes": PNG}, ImageFile("the image of message 0", PNG)),
        ({"image": {"bytes": PNG, "path": None}}, ImageFile("the image of message 0", PNG)),
        # The bytes count: the path is one of another machine.
        ({"image": {"bytes": PNG, "path": "x/a.png"}}, ImageFile("x/a.png", PNG)),
        ({"image": {"bytes": None, "path": "a.png"}}, ImageFile("a.png")),
        ({"base64": IN_BASE64}, ImageFile("the image of message 0", PNG)),
        (
            {"url": f"data:image/png;base64,{IN_BASE64}"},
            ImageFile("the image of message 0", PNG),
        ),
    ],
)
def test_an_image_in_a_part(part, expected):
    row = conversation({"type": "image"} | part, text("Which?"))
    [(role, content), answer] = read(row, rows="messages")
    assert (role, content, answer) == ("user", [expected, "Which?"], ("assistant", "2"))


def test_an_image_url_of_the_openai_spelling():
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{IN_BASE64}"}}
    [(_, content), _] = read(conversation(text("A"), part, text("B")), rows="messages")
    assert content == ["A", ImageFile("the image of message 0", PNG), "B"]


def test_parts_without_an_image_take_those_of_the_column_in_order():
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, text("1?"), {"type": "image"}]},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": [{"type": "image", "image": "own.png"}, text("2?")]},
            {"role": "assistant", "content": "2"},
            # Tables have every key in every part.
            {"role": "user", "content": [{"type": "image", "text": None, "image": None}]},
            {"role": "assistant", "content": [text("3")]},
        ],
        "images": ["a.png", {"bytes": PNG, "path": None}, "c.png"],
    }
    found = read(row, rows="messages")
    assert [content for _, content in found] == [
        [ImageFile("a.png"), "1?", ImageFile("images[1]", PNG)],
        "1",
        [ImageFile("own.png"), "2?"],
        "2",
        [ImageFile("c.png")],
        "3",
    ]


@pytest.mark.parametrize("rows", ["sharegpt", "messages"])
def test_marks_in_the_text_stand_for_the_images_of_the_column(rows):
    row = marked("<image>\nFirst, then <image><image>?", images=["a.png", "b.png", "c.png"])
    if rows == "messages":
        row = {
            "messages": [
                {"role": "user", "content": row["conversations"][0]["value"]},
                {"role": "assistant", "content": "2"},
            ],
            "images": row["images"],
        }
    [(_, content), (_, answer)] = read(row, rows=rows)
    a, b, c = (ImageFile(f"{name}.png") for name in "abc")
    assert content == [a, "\nFirst, then ", b, c, "?"] and answer == "2"


@pytest.mark.parametrize("images", [None, [], "[]", "absent"])
def test_without_images_a_mark_is_text(images):
    columns = {} if images == "absent" else {"images": images}
    assert read(marked("<image> in HTML?", **columns), rows="sharegpt")[0][1] == "<image> in HTML?"


@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"bytes": None, "path": "a.png"}])
@pytest.mark.parametrize("rows", ["fields", "alpaca"])
def test_a_column_of_images_before_the_question(rows, value):
    question, answer = ("prompt", "completion") if rows == "fields" else ("instruction", "output")
    row = {question: "Which?", answer: "2", "picture": value}
    [(_, content), _] = read(row, rows=rows, image_field="picture")
    assert content == [ImageFile("a.png"), "Which?"]


def test_a_column_of_images_goes_where_the_marks_are():
    row = {"prompt": "Is <image> or <image>?", "completion": "2", "images": ["a.png", "b.png"]}
    [(_, content), _] = read(row, rows="fields", image_field="images")
    assert content == ["Is ", ImageFile("a.png"), " or ", ImageFile("b.png"), "?"]


def test_a_row_whose_column_is_null_has_no_image():
    row = {"prompt": "1 + 1 <image>?", "completion": "2", "picture": None}
    assert read(row, image_field="picture")[0] == ("user", "1 + 1 <image>?")


def test_the_text_and_the_images_of_a_conversation():
    row = conversation(text("A"), {"type": "image", "image": "a.png"}, text("B"))
    config = config_lib.get_default().data
    config.rows = "messages"
    found = formats.read(Row("a.jsonl:1", row), config).messages
    assert text_of(found[0]) == "AB" and images_of(found) == [ImageFile("a.png")]


# (settings, row, words of the message)
REFUSED = {
    "an address": (
        {"rows": "messages"},
        conversation({"type": "image", "image": "https://x.y/a.png"}),
        ["'https://x.y/a.png'", "addresses are not fetched", "download the images first"],
    ),
    "an address of the OpenAI spelling": (
        {"rows": "messages"},
        conversation({"type": "image_url", "image_url": {"url": "http://x.y/a.png"}}),
        ["'http://x.y/a.png'", "not fetched"],
    ),
    "somebody's home": (
        {"rows": "messages"},
        conversation({"type": "image", "path": "~/a.png"}),
        ["'~/a.png'", "not fetched"],
    ),
    "how finely it is to be seen": (
        {"rows": "messages"},
        conversation({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}),
        ["the image of message 0", "image_url"],
    ),
    "a size of its own": (
        {"rows": "messages"},
        conversation({"type": "image", "image": "a.png", "max_pixels": 100}),
        ["has image, max_pixels", "would be lost"],
    ),
    "two images in a part": (
        {"rows": "messages"},
        conversation({"type": "image", "image": "a.png", "url": "b.png"}),
        ["has image, url", "one of"],
    ),
    "a number": (
        {"rows": "messages"},
        conversation({"type": "image", "image": 3}),
        ["the image of message 0 is int", "a path, bytes"],
    ),
    "neither bytes nor a path": (
        {"rows": "messages"},
        conversation({"type": "image", "image": {"bytes": None, "path": None}}),
        ["without an image"],
    ),
    "base64 as a path": (
        {"rows": "messages"},
        conversation({"type": "image", "image": "iVBOR" * 1000}),
        ["a text of 5,000 characters", "'base64'"],
    ),
    "base64 with line breaks": (
        {"rows": "messages"},
        conversation({"type": "image", "base64": base64.encodebytes(PNG * 9).decode()}),
        ["no base64"],
    ),
    "a video": (
        {"rows": "messages"},
        conversation({"type": "video", "video": "a.mp4"}),
        ["message 0", "type 'video'"],
    ),
    "an image of the assistant": (
        {"rows": "messages"},
        conversation(text("1?"), answer=[{"type": "image", "image": "a.png"}]),
        ["message 1 (of the assistant) has an image"],
    ),
    "a mark of the assistant": (
        {"rows": "sharegpt"},
        marked("Which?", answer="<image>", images=["a.png"]),
        ["message 1 (of the assistant) has an image"],
    ),
    "an image of the system": (
        {"rows": "sharegpt"},
        {
            "conversations": [
                {"from": "system", "value": "See <image>."},
                *marked("Which?")["conversations"],
            ],
            "images": ["a.png"],
        },
        ["message 0 (of the system) has an image"],
    ),
    "fewer marks than images": (
        {"rows": "sharegpt"},
        marked("<image>", images=["a.png", "b.png"]),
        ["1 places for images", "the row has 2"],
    ),
    "more marks than images": (
        {"rows": "sharegpt"},
        marked("<image><image><image>", images=["a.png", "b.png"]),
        ["3 places for images", "the row has 2"],
    ),
    "images without a mark": (
        {"rows": "sharegpt"},
        marked("Which?", images=["a.png"]),
        ["0 places for images", "the row has 1"],
    ),
    "a part without an image": (
        {"rows": "messages"},
        conversation({"type": "image"}, text("Which?")),
        ["1 places for images", "the row has 0"],
    ),
    "marks in a prompt, fewer images": (
        {"rows": "fields", "image_field": "images"},
        {"prompt": "<image> <image>?", "completion": "2", "images": ["a.png"]},
        ["2 places for images", "the row has 1"],
    ),
    "a null in the column": (
        {"rows": "sharegpt"},
        marked("<image>", images=[None]),
        ["images[0] is NoneType"],
    ),
    "no such column": (
        {"rows": "fields", "image_field": "picture"},
        {"prompt": "1?", "completion": "2"},
        ["field 'picture' is missing"],
    ),
    "a column that this format does not read": (
        {"rows": "fields"},
        {"prompt": "1?", "completion": "2", "image": "a.png"},
        ["field 'image'", "data.rows='fields' reads no images"],
    ),
    "another column than the one that is read": (
        {"rows": "fields", "image_field": "image"},
        {"prompt": "1?", "completion": "2", "image": "a.png", "images": ["b.png"]},
        ["field 'images'"],
    ),
    "videos": (
        {"rows": "sharegpt"},
        marked("<image>", images=["a.png"], videos=["b.mp4"]),
        ["field 'videos'"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_for_a_user_is_refused_by_name(case):
    settings, row, words = REFUSED[case]
    with pytest.raises(BadRow) as caught:
        read(row, **settings)
    for word in words:
        assert word in str(caught.value)


def test_a_long_text_is_cut_in_messages():
    with pytest.raises(BadRow) as caught:
        images.refuse_address("data:" + "x" * 10_000)
    assert len(str(caught.value)) < 300
