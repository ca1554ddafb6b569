"""A folder gives what its files give one by one, those of one split, in order."""

import json
import os

import pyarrow
import pytest
from ml_collections import ConfigDict
from pyarrow import parquet

from dft_jax import assets
from dft_jax.data.examples import load_examples
from dft_jax.data.sources import folders, locate
from dft_jax.data.sources.rows import BadRow
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from tests.tiny_trainer import tiny_config

ROWS = {
    # `datasets` would make floats of the ints, times of the dates, and null keys in every dict.
    "a.jsonl": [
        {"prompt": "1", "n": 1, "meta": {"a": 1}, "day": "2024-01-01"},
        {"prompt": "2", "n": 2},
    ],
    "b.json": [{"prompt": "3", "n": 1.5, "meta": {"b": [1, "x"]}, "day": "soon"}],
    "inner/a.jsonl": [{"prompt": 4, "completion": None}, {"completion": "5", "meta": "text"}],
    "inner/deep/c.parquet": [{"prompt": "6", "n": 3}, {"prompt": None, "n": None}],
}


def write(folder, rows):
    for name, values in rows.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(values), file)
        elif file.suffix == ".json":
            file.write_text(json.dumps(values))
        else:
            file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return folder


def read(place, split="train", subset=""):
    return list(locate.read_rows(str(place), ConfigDict({"subset": subset, "revision": ""}), split))


def test_a_folder_gives_what_its_files_give(tmp_path):
    folder = write(tmp_path / "rows", dict(reversed(ROWS.items())))
    (folder / "README.md").write_text("# No header")
    (folder / "LICENSE").write_text("MIT")
    (folder / "dataset_infos.json").write_text('{"default": {}}')
    write(folder / ".cache" / "huggingface", {"x.json": [{"prompt": "hidden"}]})
    found = read(folder)
    one_by_one = [row for name in ROWS for row in read(folder / name)]
    assert [row.content for row in found] == [row.content for row in one_by_one]
    assert [repr(row.content) for row in found] == [
        repr(value) for values in ROWS.values() for value in values
    ]
    places = ["a.jsonl:1", "a.jsonl:2", "b.json[0]", "inner/a.jsonl:1", "inner/a.jsonl:2"]
    assert [row.origin for row in found] == [
        *places,
        "inner/deep/c.parquet[0]",
        "inner/deep/c.parquet[1]",
    ]


def test_a_key_twice_is_seen_in_a_folder_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "prompt": "y"}\n')
    [row] = read(tmp_path)
    with pytest.raises(BadRow, match="key 'prompt' appears twice"):
        _ = row.value


def test_a_column_twice_is_refused(tmp_path):
    table = pyarrow.table([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["prompt", "prompt"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        errors.UserError, match=r"a\.parquet: column 'prompt' is there twice; keep one"
    ):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "b.json"])
def test_a_byte_order_mark_before_rows_is_no_text(name, tmp_path):
    """Windows editors put one there; the rows are the same."""
    file = write(tmp_path, {name: ROWS[name]}) / name
    plain = read(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(file) == plain and [row.value for row in plain] == ROWS[name]


# Path in a folder -> the split it names.
NAMED = {
    **{
        "a.jsonl": "",
        "rows/part.json": "",
        "trained.jsonl": "",
        "contest.jsonl": "",
        "latest.jsonl": "",
    },
    **{
        "train.jsonl": "train",
        "my-train.json": "train",
        "train_1.jsonl": "train",
        "training/a.jsonl": "train",
    },
    **{
        "test.parquet": "test",
        "eval.jsonl": "test",
        "gsm8k_test.jsonl": "test",
        "train/test.jsonl": "test",
    },
    **{"dev/a.jsonl": "validation", "val.json": "validation", "x.valid.jsonl": "validation"},
    "data/train-00000-of-00002.parquet": "train",
    "data/train_sft-00000-of-00002-1f2e.parquet": "train_sft",
    "main/test-00000-of-00001.parquet": "test",
    "part-00000-of-00002.parquet": "",
}


@pytest.mark.parametrize("name", NAMED)
def test_the_split_that_a_name_says(name):
    assert folders.split_of(name) == NAMED[name]


def test_splits_by_name(tmp_path):
    rows = {f"{name}.jsonl": [{"prompt": name}] for name in ("train-2", "train-1", "dev", "test")}
    write(tmp_path, rows)
    assert [row.content["prompt"] for row in read(tmp_path)] == ["train-1", "train-2"]
    assert [row.content["prompt"] for row in read(tmp_path, "validation")] == ["dev"]
    assert [row.content["prompt"] for row in read(tmp_path, "test")] == ["test"]


# Name -> (files and their content, split, subset, what the message must say).
BAD = {
    "nothing": (
        {"README.md": "x"},
        "train",
        "",
        ["has no rows; put .jsonl or .json or .parquet files there"],
    ),
    "no such split": (
        {"train.jsonl": "{}"},
        "test",
        "",
        ["has no split 'test', only train; set data.split or data.heldout_split"],
    ),
    "no split is train": ({"a.jsonl": "{}"}, "test", "", ["has no split 'test', only train"]),
    "an unclear split": (
        {"train.jsonl": "{}", "more.jsonl": "{}"},
        "train",
        "",
        ["more.jsonl names no split, others there do", "rename or remove it"],
    ),
    "two splits": (
        {"train_test.jsonl": "{}"},
        "train",
        "",
        ["train_test.jsonl names two splits, test and train"],
    ),
    "rows in CSV": (
        {"a.jsonl": "{}", "in/b.csv": "x"},
        "train",
        "",
        ["in/b.csv: rows in a .csv file are not read"],
    ),
    "packed rows": (
        {"a.jsonl.gz": "x"},
        "train",
        "",
        ["a.jsonl.gz: rows in a .gz file are not read", "or remove it"],
    ),
    "large letters": (
        {"a.JSONL": "{}"},
        "train",
        "",
        ["a.JSONL: rows in a .JSONL file are not read"],
    ),
    "saved by datasets": (
        {"data-00000-of-00001.arrow": "x", "state.json": "{}", "dataset_info.json": "{}"},
        "train",
        "",
        ["rows in a .arrow file are not read; make it one of .jsonl"],
    ),
    "no such subset": (
        {"a.jsonl": "{}"},
        "train",
        "main",
        ["has no subset 'main'", "set data.subset"],
    ),
    "a subset outside": ({"a.jsonl": "{}"}, "train", "..", ["has no subset '..'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case, tmp_path):
    contents, split, subset, expected = BAD[case]
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(errors.UserError) as caught:
        read(tmp_path, split, subset)
    for text in expected:
        assert text in caught.value.report()


def test_a_link_to_a_folder_that_it_lies_in_adds_no_rows(tmp_path):
    """Each row was there 41 times: as often as the system follows a link."""
    folder = write(tmp_path / "rows", {"in/a.jsonl": [{"prompt": "1"}]})
    write(tmp_path / "other", {"b.jsonl": [{"prompt": "2"}]})
    (folder / "in" / "self").symlink_to(folder)
    (folder / "other").symlink_to(tmp_path / "other")
    assert [row.origin for row in read(folder)] == ["in/a.jsonl:1", "other/b.jsonl:1"]


def test_a_folder_inside_that_is_closed_is_refused(tmp_path, monkeypatch):
    """Its rows were left out in silence."""
    write(tmp_path, {"a.jsonl": [{"prompt": "1"}], "in/b.jsonl": [{"prompt": "2"}]})
    scandir = os.scandir

    def closed(path):
        if os.path.basename(path) == "in":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(errors.UserError, match=r"in: cannot be looked into .*Permission denied"):
        read(tmp_path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_a_file_that_cannot_be_read_is_refused(ending, tmp_path):
    write(tmp_path, {"a.jsonl": [{"prompt": "1"}]})
    (tmp_path / f"b{ending}").symlink_to(tmp_path / "gone")
    with pytest.raises(errors.UserError, match=f"b{ending}.*No such file or directory"):
        read(tmp_path)


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-*, "more/*.json"]
- config_name: socratic
  data_files: socratic/*.jsonl
{extra}---
# GSM8K
"""


@pytest.fixture
def fetched(tmp_path):
    """As `hf download --repo-type dataset --local-dir` leaves it."""
    names = [
        "main/train-00000-of-00001.jsonl",
        "main/test-00000-of-00001.jsonl",
        "more/x.json",
        "socratic/a.jsonl",
    ]
    write(tmp_path, {name: [{"prompt": name}] for name in names})
    (tmp_path / "README.md").write_text(CARD.format(extra=""))
    return tmp_path


def prompts(*arguments):
    return [row.content["prompt"] for row in read(*arguments)]


def test_a_fetched_dataset_is_read_by_its_card(fetched):
    assert prompts(fetched, "train", "main") == ["main/train-00000-of-00001.jsonl"]
    assert prompts(fetched, "test", "main") == ["main/test-00000-of-00001.jsonl", "more/x.json"]
    assert prompts(fetched, "train", "socratic") == ["socratic/a.jsonl"]
    with pytest.raises(
        errors.UserError, match="lists the subsets main, socratic; set data.subset to one of them"
    ):
        read(fetched)
    with pytest.raises(errors.UserError, match="lists the subsets main, socratic"):
        read(fetched, "train", "other")
    with pytest.raises(errors.UserError, match="has no split 'dev', only test, train"):
        read(fetched, "dev", "main")
    default = CARD.format(extra="").replace(
        "config_name: main", "config_name: main\n  default: true"
    )
    (fetched / "README.md").write_text(default)
    assert prompts(fetched) == ["main/train-00000-of-00001.jsonl"]


def test_a_card_with_numbers_as_names(fetched):
    numbered = CARD.format(extra="").replace("name: main", "name: 2024").replace("test\n", "2\n")
    (fetched / "README.md").write_text(numbered)
    assert prompts(fetched, "2", "2024") == ["main/test-00000-of-00001.jsonl", "more/x.json"]


@pytest.mark.parametrize("pattern", ["main/**", "main/**/*", "**/train-*"])
def test_a_card_may_ask_for_all_below(pattern, fetched):
    listed = CARD.format(extra="").replace("main/train-*", f"'{pattern}'")
    (fetched / "README.md").write_text(listed)
    write(fetched, {"main/deep/train-1.jsonl": [{"prompt": "deep"}]})
    found = prompts(fetched, "train", "main")
    assert {"deep", "main/train-00000-of-00001.jsonl"} <= set(found)


@pytest.mark.parametrize(
    "old, new, expected",
    [
        (
            "main/train-*",
            "main/dev-*",
            "of the files 'main/dev-*' on its README.md there are none; fetch them again",
        ),
        ("main/train-*", "../*", "its README.md names files outside, '../*'"),
        (
            "main/train-*",
            "READ*",
            "of the files 'READ*' on its README.md README.md is not read here",
        ),
        ("license: mit", "license: [", "README.md: its header cannot be read"),
        ("    path: main/train-*", "", "README.md: its header cannot be read"),
        ("main/train-*", "5", "a path of data_files is 5); fix or remove it"),
        ("main/train-*", "''", "a path of data_files is ''); fix or remove it"),
        ("main/train-*", "[main/train-*, null]", "a path of data_files is None"),
        ("main/train-*", "main/**.jsonl", "** is no whole part of the path 'main/**.jsonl'"),
    ],
)
def test_bad_cards(old, new, expected, fetched):
    (fetched / "README.md").write_text(CARD.format(extra="").replace(old, new))
    with pytest.raises(errors.UserError) as caught:
        read(fetched, "train", "main")
    assert expected in caught.value.report()


@pytest.mark.parametrize(
    "why, remedy",
    [
        (
            "Couldn't reach 'x/y' on the Hub (OfflineModeIsEnabled)",
            "hf download --repo-type dataset x/y --local-dir",
        ),
        (
            "Dataset 'x/y' doesn't exist on the Hub or cannot be accessed.",
            "give a local file, or fetch it where",
        ),
        (
            "Dataset 'x/y' is a gated dataset on the Hub.",
            "network (after `hf auth login`): hf download",
        ),
        (
            "Unknown split \"test\". Should be one of ['train'].",
            "set data.split or data.heldout_split",
        ),
        ("BuilderConfig 'x' not found. Available: ['main']", "set data.subset"),
        ("Config name is missing.", "set data.subset"),
    ],
)
def test_the_remedy_for_a_dataset_of_the_hub(why, remedy, monkeypatch):
    import datasets

    def fails(*arguments, **options):
        raise ValueError(why)

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(errors.UserError) as caught:
        read("x/y")
    assert why[:30] in str(caught.value) and remedy in str(caught.value)


class Table:
    """Rows as `datasets` gives them, with the files that they are in."""

    features = None

    def __init__(self, rows, files):
        self.rows = rows
        self.cache_files = [{"filename": str(file)} for file in files]

    def with_format(self, name):
        assert name == "arrow"
        return self

    def __iter__(self):
        return iter(self.rows)

    def iter(self, batch_size):
        for begin in range(0, len(self.rows), batch_size):
            yield pyarrow.Table.from_pylist(self.rows[begin : begin + batch_size])


@pytest.mark.parametrize(
    "folders, commit",
    [(["c" * 40] * 2, "c" * 40), (["c" * 40, "d" * 40], None), (["main"], None), ([], None)],
)
def test_the_commit_of_a_dataset_is_that_of_its_files(folders, commit, monkeypatch):
    import datasets

    files = [f"/cache/x___y/main/0.0.0/{name}/y-train-{n}.arrow" for n, name in enumerate(folders)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Table([{"a": 1}], files))
    source = locate.open_rows("x/y", ConfigDict({"subset": "", "revision": "main"}), "train")
    assert (source.commit, [row.value for row in source.rows]) == (commit, [{"a": 1}])


def test_the_commit_of_a_folder_is_that_of_a_snapshot_and_in_its_account(tmp_path):
    snapshot = tmp_path / "datasets--x--y" / "snapshots" / ("c" * 40)
    for folder, commit in ((snapshot, "c" * 40), (tmp_path / "plain", None)):
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"prompt": "1+1?", "completion": "2"}\n')
        config = tiny_config(**{"data.train": str(folder), "data.rows": "fields"}).data
        examples = load_examples(config.train, config, load_tokenizer(assets.TINY), 264)
        assert examples.report["commit"] == commit
    assert (
        locate.open_rows(str(tmp_path / "plain" / "train.jsonl"), ConfigDict(), "train").commit
        is None
    )
