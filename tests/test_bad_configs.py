"""Mistakes in configs and on command lines: each ends with exit code 2 and says what, where and how
to mend it.
"""

import sys

import pytest

from configs import tiny
from dft_jax import config as config_lib, main
from tests.commands import TINY, check_refused, run_command

# Name -> (overrides of configs/tiny.py, what stderr must say: the value, the field and the remedy).
OVERRIDES = {
    "unknown section": (
        ["--config.modell.path=x"],
        ["config.modell.path", "unknown key", "did you mean 'model.path'"],
    ),
    "misspelt key": (
        ["--config.train.sede=1"],
        ["config.train.sede", "unknown key", "did you mean 'train.seed'"],
    ),
    "key given by its last part": (
        ["--config.seed=1"],
        ["config.seed", "unknown key", "did you mean 'eval.seed' or 'train.seed'?"],
    ),
    "key with one dash": (
        ["-config.train.sede=1"],
        ["config.train.sede", "unknown key", "did you mean 'train.seed'"],
    ),
    "key and value apart": (
        ["--config.train.sede", "1"],
        ["config.train.sede", "did you mean 'train.seed'"],
    ),
    "value for a whole section": (
        ["--config.train=3"],
        ["config.train is a section", "train.global_batch"],
    ),
    "word for an int": (
        ["--config.train.steps=ten"],
        ["config.train.steps=ten should be int, such as 0"],
    ),
    "float for an int": (
        ["--config.train.steps=1.5"],
        ["config.train.steps=1.5 should be int, such as 0"],
    ),
    "bool for an int": (
        ["--config.train.steps=True"],
        ["config.train.steps=True should be int, such as 0"],
    ),
    "tuple for an int": (
        ["--config.train.steps=(1,2)"],
        ["config.train.steps=(1,2) should be int, such as 0"],
    ),
    "word for a bool": (
        ["--config.log.tensorboard=maybe"],
        ["config.log.tensorboard=maybe should be bool, such as True"],
    ),
    "zero batch": (
        ["--config.train.global_batch=0"],
        ["config.train.global_batch=0", "should be at least 1"],
    ),
    # Said with what else is wrong: nothing was read.
    "no file of a benchmark": (
        [
            "--config.eval.benchmarks=gsm8k,lab",
            "--config.eval.benchmark_data=none",
            "--config.train.global_batch=0",
        ],
        ["config.eval.benchmark_data: benchmark data none: no such file", "global_batch=0"],
    ),
    "limits of images that no benchmark shows": (
        ["--config.eval.benchmarks=lab", "--config.eval.image_max_pixels=5000"],
        ["config.eval.image_max_pixels=5000 has no effect", "no problem of lab shows an image"],
    ),
    "best by no metric": (
        ["--config.checkpoint.best=heldout/nl"],
        ["config.checkpoint.best='heldout/nl'", "did you mean 'heldout/nll'", "heldout/mean_p"],
    ),
    "best by what has no direction": (
        ["--config.checkpoint.best=heldout/entropy"],
        ["config.checkpoint.best='heldout/entropy' is no metric to choose by"],
    ),
    "best of nothing held out": (
        ["--config.checkpoint.best=heldout/nll", "--config.data.heldout="],
        ["config.checkpoint.best='heldout/nll'", "nothing is held out", "config.data.heldout"],
    ),
    "best of one step": (
        ["--config.checkpoint.best=heldout/nll", "--config.eval.every=0"],
        ["config.checkpoint.best='heldout/nll'", "config.eval.every"],
    ),
    "negative minutes": (
        ["--config.checkpoint.every_minutes=-1"],
        ["config.checkpoint.every_minutes=-1", "at least 0"],
    ),
    "unknown type of an export": (
        ["--config.export.dtype=fp8"],
        ["config.export.dtype='fp8'", "auto, source, float32"],
    ),
    "negative length": (
        ["--config.data.max_length=-5"],
        ["config.data.max_length=-5", "at least 2"],
    ),
    "negative row": (
        ["--config.data.row_length=-1"],
        ["config.data.row_length=-1", "at least 0 (as data.max_length)"],
    ),
    "row that holds no long example": (
        ["--config.data.row_length=200"],
        ["config.data.row_length=200 is below data.max_length=384", "or 0 for the same"],
    ),
    "negative steps": (
        ["--config.train.steps=-1"],
        ["config.train.steps=-1", "should be at least 0"],
    ),
    "seed beyond 32 bits": (
        ["--config.train.seed=4294967296"],
        ["config.train.seed=4294967296", "below 4294967296"],
    ),
    "learning rate is nan": (
        ["--config.optimizer.learning_rate=nan"],
        ["learning_rate=nan", "a finite number"],
    ),
    "learning rate is infinite": (
        ["--config.optimizer.learning_rate=inf"],
        ["learning_rate=inf", "a finite number"],
    ),
    "no learning rate": (
        ["--config.optimizer.learning_rate=0"],
        ["learning_rate=0", "should be above 0"],
    ),
    "b2 of one": (["--config.optimizer.b2=1.0"], ["config.optimizer.b2=1.0", "in [0, 1)"]),
    "unknown objective": (
        ["--config.objective=dtf"],
        ["config.objective='dtf'", "did you mean 'dft'", "known: sft"],
    ),
    "unknown parameter": (
        ["--config.objective=power(beta=1)"],
        ["power(beta=1)", "no parameter 'beta'", "known: alpha"],
    ),
    "parameter out of range": (
        ["--config.objective=threshold(tau=2)"],
        ["tau must be between 0 and 1", "'2'"],
    ),
    "objective without bracket": (
        ["--config.objective=power(alpha=1"],
        ["power(alpha=1'", "expected a name such as"],
    ),
    "unknown template": (
        ["--config.data.template=qwen-box"],
        [
            "config.data.template='qwen-box'",
            "did you mean 'qwen-boxed'",
            "known: tokenizer",
            ".jinja",
        ],
    ),
    "missing template file": (
        ["--config.data.template=no.jinja"],
        ["template='no.jinja'", "no such file", "correct the path"],
    ),
    "unknown rows": (
        ["--config.data.rows=gsm8"],
        ["config.data.rows='gsm8'", "did you mean 'gsm8k'", "known: fields"],
    ),
    "unknown schedule": (
        ["--config.optimizer.schedule=cosin"],
        ["schedule='cosin'", "did you mean 'cosine'", "linear"],
    ),
    "unknown dtype": (
        ["--config.model.compute_dtype=fp8"],
        ["model.compute_dtype='fp8'", "known: float32, bfloat16"],
    ),
    "unknown attention": (
        ["--config.model.attention=splsh"],
        ["model.attention='splsh'", "did you mean 'splash'", "known: auto, blocked, splash, cudnn"],
    ),
    "attention of TPUs": (
        ["--config.model.attention=splash"],
        ["config.model.attention='splash'", "needs a TPU", "'cpu'", "use auto or blocked"],
    ),
    "attention of GPUs": (
        ["--config.model.attention=cudnn"],
        [
            "config.model.attention='cudnn'",
            "needs compute capability 9 or 10",
            "none",
            "use auto or blocked",
        ],
    ),
    "mesh of too few": (
        ["--config.mesh.data=3"],
        ["config.mesh: data=3 × fsdp=1 × tensor=1 makes 3", "8 devices", "(1, 2, 4, 8)"],
    ),
    "mesh does not divide": (
        ["--config.mesh.tensor=3"],
        ["tensor=3", "makes 3 × the rest", "8 devices", "(1, 2, 4, 8)"],
    ),
    "two free axes": (
        ["--config.mesh.fsdp=-1"],
        ["data=-1 × fsdp=-1", "only one axis can be -1", "give the sizes"],
    ),
    "rows that do not divide into two pieces a device": (
        ["--config.mesh.sequence=4", "--config.data.row_length=388"],
        ["config.mesh.sequence=4 cuts rows into 8 pieces", "388 tokens", "data.row_length=392"],
    ),
    "mesh axis of zero": (["--config.mesh.fsdp=0"], ["config.mesh.fsdp=0", "at least 1, or -1"]),
    "batch below its rows": (
        ["--config.train.accumulation=4"],
        ["config.train.global_batch=16", "accumulation=4 = 32 rows", "use at least 32"],
    ),
    "kv heads not divisible": (
        ["--config.mesh.tensor=4"],
        ["config.mesh.tensor=4", "2 key/value heads", "legal here: 1, 2"],
    ),
    "heads not divisible": (
        ["--config.mesh.tensor=8"],
        ["config.mesh.tensor=8", "4 attention heads", "legal here: 1, 2, 4"],
    ),
    "experts of a model without any": (
        ["--config.mesh.expert=2"],
        ["config.mesh.expert=2", "this model has none", "mesh.fsdp=2"],
    ),
    "a balance of nothing": (
        ["--config.train.balance_weight=0.01"],
        ["config.train.balance_weight=0.01", "no experts to balance"],
    ),
    "length beyond the model": (
        ["--config.data.max_length=1024"],
        ["config.data.max_length=1024", "max_position_embeddings=512", "use at most 512"],
    ),
    "no model": (
        ["--config.model.path="],
        ["config.model.path is empty", "give the folder or hub id"],
    ),
    "missing model folder": (
        ["--config.model.path=./nowhere"],
        ["path='./nowhere'", "no such folder", "correct the path"],
    ),
    "neither folder nor hub id": (
        ["--config.model.path=nowhere"],
        ["model.path='nowhere'", "not a folder", "hub id such as"],
    ),
    "hub model, offline": (
        ["--config.model.path=nobody/nothing"],
        [
            "model.path='nobody/nothing'",
            "where there is a network: hf download nobody/nothing --revision main",
        ],
    ),
    "revision of a folder": (
        ["--config.model.revision=v2"],
        [
            "config.model.revision='v2' has no effect: model.path=",
            "is a folder; remove it (--config.model.revision=main)",
        ],
    ),
    "subset and revision of a file": (
        ["--config.data.subset=main", "--config.data.revision=v2"],
        [
            "data.subset='main' has no effect: the data is neither of the hub nor",
            "config.data.revision='v2' has no",
        ],
    ),
    "split of a file": (
        ["--config.data.split=validation"],
        ["config.data.split='validation' has no effect: data.train=", "has no splits; remove it"],
    ),
    "no data": (["--config.data.train="], ["config.data.train is empty", "give a .jsonl"]),
    "several at once, the mesh among them": (
        [
            "--config.train.steps=-1",
            "--config.objective=x",
            "--config.data.rows=x",
            "--config.mesh.tensor=3",
        ],
        [
            "config.train.steps=-1",
            "config.objective='x'",
            "config.data.rows='x'",
            "config.mesh: ",
            "tensor=3",
        ],
    ),
    "more than five at once": (
        [
            f"--config.{key}=-7"
            for key in (
                "train.steps",
                "train.seed",
                "eval.every",
                "log.every",
                "mesh.data",
                "data.max_rows",
            )
        ],
        ["config.data.max_rows=-7", "and 2 more problems; fix these first"],
    ),
    "unknown flag": (["--workdri=x"], ["workdri", "Did you mean: workdir"]),
    "stray word": (["runs/tiny"], ["unexpected argument 'runs/tiny'", "--name=value"]),
    "empty workdir": (["--workdir="], ["--workdir is required"]),
    "bucket as workdir": (
        ["--workdir=s3://bucket/run"],
        ["--workdir=s3://bucket/run", "give a local or mounted folder", "gs://BUCKET/RUN"],
    ),
    "bucket as data": (
        ["--config.data.train=gs://bucket/train.jsonl"],
        ["config.data.train='gs://bucket/train.jsonl': only files and folders of this", "mount"],
    ),
    "bucket as held-out data": (
        ["--config.data.heldout=s3://bucket/test"],
        ["config.data.heldout='s3://bucket/test': only files and folders of this", "or copy"],
    ),
    "bucket as model": (
        ["--config.model.path=gs://bucket/base"],
        ["config.model.path='gs://bucket/base': only files and folders of this", "mount the"],
    ),
    "bucket as template": (
        ["--config.data.template=gs://bucket/chat.jinja"],
        ["config.data.template='gs://bucket/chat.jinja': only files and", "mount the bucket"],
    ),
}


@pytest.mark.parametrize("heldout", ["", "world(split=validation, n=8)"])
def test_subset_and_revision_of_a_dataset_of_the_hub_are_settings_like_others(heldout, tmp_path):
    """Also where only one of the two files is of the hub; a folder has subsets and splits, but no
    revision.
    """
    config = tiny.get_config()
    config.data.update(
        train="openai/gsm8k", heldout=heldout, subset="main", revision="v2", split="train[:100]"
    )
    assert config_lib.validate(config) == []
    config.data.update(train=str(tmp_path), revision="", split="validation")
    assert config_lib.validate(config) == []


# Name -> (text after the colon of --config, what stderr must say).
ARGUMENTS = {
    "unknown argument": (
        ":objectve=sft",
        ["objectve=sft", "did you mean 'objective'", "objective=sft"],
    ),
    "argument without a value": (":dft", [":dft", "expected some of objective=sft"]),
}

_HEAD = (
    "from dft_jax.config import get_default\n\n\ndef get_config():\n    config = get_default()\n"
)

# Name -> (text of the config file, what stderr must say).
FILES = {
    "syntax error": (
        _HEAD + "    config.train.seed = = 1\n    return config\n",
        ["bad.py:6:", "invalid syntax", "fix the config file"],
    ),
    "import that fails": (
        "import no_such_module\n",
        ["bad.py:1", "No module named 'no_such_module'", "fix the config file"],
    ),
    "no get_config": ("x = 1\n", ["bad.py: no get_config() in it", "see configs/tiny.py"]),
    "get_config raises": (
        _HEAD + "    return 1 / 0\n",
        ["bad.py:6", "division by zero", "fix the config file"],
    ),
    "get_config of another type": (
        "def get_config():\n    return [1]\n",
        ["get_config() should return a ConfigDict", "list"],
    ),
    "get_config forgets return": (_HEAD, ["get_config() should return a ConfigDict", "NoneType"]),
    "misspelt key in the file": (
        _HEAD + "    config.train.sede = 1\n    return config\n",
        ["bad.py:6", 'Did you mean "seed" instead of "sede"'],
    ),
    "bool for an int in the file": (
        _HEAD + "    config.train.steps = True\n    return config\n",
        ["config.train.steps=True", "should be int, not bool"],
    ),
    "None in the file": (
        _HEAD + "    config.data.train = None\n    return config\n",
        ["config.data.train=None", "should be str"],
    ),
    "tuple in the file": (
        _HEAD + "    config.train.steps = (1,)\n    return config\n",
        ["bad.py:6", "steps", "int"],
    ),
    "unknown key by unlocking": (
        _HEAD + "    config.unlock()\n    config.data.tran = 'x'\n    return config\n",
        ["config.data.tran: unknown key", "did you mean 'data.train'"],
    ),
    "key removed": (
        _HEAD + "    config.unlock()\n    del config.train.seed\n    return config\n",
        ["config.train.seed is missing", "get_default()"],
    ),
    "section replaced": (
        _HEAD
        + "    config.unlock()\n    with config.ignore_type():\n        config.log = 3\n    return config\n",
        ["config.log is a section", "config.log.every is missing"],
    ),
}


@pytest.fixture
def refused(tmp_path, capfd, monkeypatch):
    """refused(arguments, expected): the command does nothing but say what is wrong."""

    def check(arguments, expected):
        check_refused(main.main, arguments, expected, tmp_path, capfd, monkeypatch)

    return check


@pytest.mark.parametrize("case", OVERRIDES)
def test_override(case, refused, tmp_path):
    overrides, expected = OVERRIDES[case]
    refused([TINY, f"--workdir={tmp_path}/run", *overrides], expected)


@pytest.mark.parametrize("case", ARGUMENTS)
def test_argument(case, refused, tmp_path):
    text, expected = ARGUMENTS[case]
    refused([TINY + text, f"--workdir={tmp_path}/run"], expected)


@pytest.mark.parametrize("case", FILES)
def test_file(case, refused, tmp_path, monkeypatch):
    text, expected = FILES[case]
    (tmp_path / "bad.py").write_text(text)
    # or Python leaves a __pycache__ beside the file
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    refused([f"--config={tmp_path}/bad.py", f"--workdir={tmp_path}/run"], expected)


def test_missing_file(refused, tmp_path):
    refused(
        [f"--config={tmp_path}/no.py", f"--workdir={tmp_path}/run"],
        ["no.py", "no such file", "correct the path"],
    )


def test_file_of_another_kind(refused, tmp_path):
    (tmp_path / "tiny.json").write_text("{}")
    refused(
        [f"--config={tmp_path}/tiny.json"], ["tiny.json: a config is a Python file", "ends in .py"]
    )


def test_override_of_a_removed_key(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "bad.py").write_text(FILES["key removed"][0])
    refused(
        [f"--config={tmp_path}/bad.py", "--config.train.seed=1"],
        ["--config: ", "seed", "start from dft_jax.config"],
    )


def test_missing_config(refused, tmp_path):
    refused([f"--workdir={tmp_path}/run"], ["--config is required"])


def test_missing_workdir(refused):
    refused([TINY], ["--workdir is required", "--help"])


def test_missing_wandb(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(
        [TINY, f"--workdir={tmp_path}/run", "--config.log.wandb_project=x"],
        ["config.log.wandb_project", "pip install wandb"],
    )


def test_broken_wandb(refused, tmp_path, monkeypatch):
    """It is installed, and its import fails: said at the start, not by process 0 once all is
    compiled.
    """
    package = tmp_path.parent / f"{tmp_path.name}.packages/wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import a_package_that_wandb_needs")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    refused(
        [TINY, f"--workdir={tmp_path}/run", "--config.log.wandb_project=x"],
        [
            "config.log.wandb_project is set, but wandb cannot be imported",
            "a_package_that",
            "pip install wandb",
        ],
    )


def test_help_is_the_docstring_and_the_flags(capfd, monkeypatch):
    outcome = run_command(main.main, ["--help"], capfd, monkeypatch)
    assert outcome.code == 0 and "--workdir" in outcome.stdout and "--config" in outcome.stdout
