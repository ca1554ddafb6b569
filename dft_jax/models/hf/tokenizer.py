"""A checkpoint's tokenizer: what its tokenizer.json says, as the `tokenizers` library reads it.

transformers 5 does not read that file's steps where tokenizer_config.json or config.json names a
class of its own: it takes the vocabulary and puts the class's steps around it. SmolLM2 (class
GPT2Tokenizer) loses its Digits step so, and `6  5` has other ids than in its pretraining; a folder
of class Qwen2Tokenizer gets Qwen's splitting and NFC. Hence one object, made of the file, through
which all text goes: training, prompts, completions, pages.
"""

import collections
import copy
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer as Backend
from tokenizers.decoders import Decoder

from dft_jax.runtime import errors
from dft_jax.runtime.files import read_json, refuse_code

FILE_NAME, SETTINGS_NAME = "tokenizer.json", "tokenizer_config.json"
_MAP_NAME, _TEMPLATE_NAME = "special_tokens_map.json", "chat_template.jinja"
_ADDED_NAME = "added_tokens.json"
# Tokens that have a name, in the order in which transformers hands them to chat templates.
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_REMEDY = f"copy {FILE_NAME} and {SETTINGS_NAME} of the base model there"
# Where there is no tokenizer.json: classes that alone say how text is split.
_CLASSES_OF_MERGES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast")
_OTHER_VOCABULARIES = ("tokenizer.model", "tekken.json", "*.model", "*.tiktoken", "vocab*")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What stands beside a vocabulary."""

    special_tokens_map: dict[str, str]  # name -> text, of the tokens that have a name
    extra_special: tuple[str, ...] = ()  # special tokens without a name
    adds_bos: bool = False  # whether texts begin with BOS though no step of the file adds it
    chat_templates: dict[str, str] = dataclasses.field(default_factory=dict)
    # file -> what it says ends a text
    eos_ids: dict[str, list[int]] = dataclasses.field(default_factory=dict)


class Tokenizer:
    """Text to ids and back; the names are those of transformers, as far as this project uses them.

    Args:
      backend: from the `tokenizers` library; changed here.
      settings: what its folder says besides.

    Raises:
      UserError: no EOS, or one that is no token of the vocabulary.
    """

    def __init__(self, backend: Backend, settings: Settings):
        # A file that was saved after training may hold both, and would cut and pad every example.
        backend.no_truncation()
        backend.no_padding()
        if backend.decoder is not None:
            backend.decoder = _without_cleanup(backend.decoder)
        self.special_tokens_map = settings.special_tokens_map
        self.chat_templates = settings.chat_templates
        self.eos_ids = settings.eos_ids
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        named = (*self.special_tokens_map.values(), *settings.extra_special)
        for text in dict.fromkeys(named):
            if text not in added and backend.token_to_id(text) is not None:
                # In the vocabulary, but the file does not say that its text is read as one token.
                backend.add_special_tokens([AddedToken(text, normalized=False)])
        self.backend = backend
        self.bos_token = self.special_tokens_map.get("bos_token")
        self.eos_token = self.special_tokens_map.get("eos_token")
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        self.pad_token_id = self._named_id("pad_token")
        self._require_eos()
        added_tokens = backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added_tokens)
        special = {id_ for id_, token in added_tokens.items() if token.special}
        for text in named:
            id_ = backend.token_to_id(text)
            if id_ is not None:
                special.add(id_)
        self.all_special_ids = sorted(special)
        first = backend.encode("").ids[:1]
        if settings.adds_bos and self.bos_token_id is not None:
            first = [self.bos_token_id]
        # What texts begin with: BOS (Llama, DeepSeek, Mistral) or nothing.
        self.first_ids: list[int] = first if first == [self.bos_token_id] else []
        # What it adds is in `first_ids`; without it the offsets of a token include its spaces.
        backend.post_processor = None

    def _named_id(self, name: str) -> int | None:
        text = self.special_tokens_map.get(name)
        if text is None:
            return None
        return self.backend.token_to_id(text)

    def _require_eos(self) -> None:
        if self.eos_token is None:
            raise errors.UserError(
                f"the tokenizer has no eos_token, so no answer could end; set it in {SETTINGS_NAME}"
            )
        if self.eos_token_id is None or self.encode(self.eos_token) != [self.eos_token_id]:
            raise errors.UserError(
                f"eos_token={self.eos_token!r} of {SETTINGS_NAME} is no token of the vocabulary;"
                " take both files from the same model"
            )

    def encode(self, text: str) -> list[int]:
        """The ids of a text; nothing is added to it."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Ids (`.ids`) and places (`.offsets`, in characters) of each text; nothing is added."""
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, ids: Iterable[Any], skip_special_tokens: bool = False) -> str:
        """The text of ids as it is: no space before a full stop is taken out."""
        kept = [int(id_) for id_ in ids]
        if skip_special_tokens:
            special = set(self.all_special_ids)
            kept = [id_ for id_ in kept if id_ not in special]
        return self.backend.decode(kept, skip_special_tokens=False)

    @functools.cached_property
    def reads_all(self) -> bool:
        """Whether every text has tokens: true of vocabularies that fall back to bytes."""
        return not self._without_token(_EVERY_BYTE, self.encode(_EVERY_BYTE))

    def without_token(self, text: str, ids: Iterable[int]) -> str:
        """The characters of a text that none of its `ids` stands for, white space aside.

        A vocabulary without bytes drops them, or has its unknown token for them. What the file's
        normaliser makes of a character counts as the character.
        """
        if self.reads_all:
            return ""
        return self._without_token(text, ids)

    def _without_token(self, text: str, ids: Iterable[int]) -> str:
        read = collections.Counter(self.decode(id_ for id_ in ids if id_ != self._unknown_id))
        spellings = [text]
        if self.backend.normalizer is not None:
            spellings.append(self.backend.normalizer.normalize_str(text))
        # Some files write spaces as "▁" when they normalise, others compose characters: the kinder
        # spelling counts.
        return min((_missing(spelling, read) for spelling in spellings), key=len)

    @functools.cached_property
    def _unknown_id(self) -> int | None:
        model = self.backend.model
        if not hasattr(model, "unk_token"):
            # a Unigram model, whose number is in its JSON only
            return json.loads(self.backend.to_str())["model"].get("unk_id")
        if model.unk_token is None:
            return None
        return self.backend.token_to_id(model.unk_token)

    def convert_ids_to_tokens(self, id_: int) -> str | None:
        """The name of a token in the vocabulary."""
        return self.backend.id_to_token(int(id_))

    def get_vocab(self) -> dict[str, int]:
        """Name -> id of every token."""
        return self.backend.get_vocab()

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True
    ) -> dict[str, list]:
        """As transformers spells it: {"input_ids": ids}, of one text or of several."""
        first: list[int] = []
        if add_special_tokens:
            first = self.first_ids
        if isinstance(text, str):
            return {"input_ids": first + self.encode(text)}
        return {"input_ids": [first + encoding.ids for encoding in self.encode_batch(text)]}

    def get_chat_template(self) -> str:
        """The chat template, of several the default one; ValueError where there is none."""
        if "default" in self.chat_templates:
            return self.chat_templates["default"]
        others = ""
        if self.chat_templates:
            others = f" by default (it has {', '.join(sorted(self.chat_templates))})"
        raise ValueError(f"no chat template{others}")


def _without_cleanup(decoder: Decoder) -> Decoder:
    """The decoder with no step that takes out spaces before full stops, as word pieces may have it.

    What is graded has to be what was sampled; `a .b` may be code.
    """
    # JSON; the library has no other access to the steps of a sequence
    state = decoder.__getstate__()
    if b'"cleanup":true' in state:
        decoder = copy.copy(decoder)
        decoder.__setstate__(state.replace(b'"cleanup":true', b'"cleanup":false'))
    return decoder


def _missing(text: str, read: collections.Counter[str]) -> str:
    """The characters of `text`, each as often as it is not in `read`; white space aside."""
    missing = collections.Counter("".join(text.split())) - read
    return "".join(missing.elements())


def _every_byte() -> str:
    """Characters whose UTF-8 has every byte there can be; no vocabulary of characters has them."""
    ascii_ = [chr(code) for code in range(128) if not chr(code).isspace()]
    two_bytes = [chr(code) for code in range(0x80, 0x800, 29)]  # each first byte, each second one
    three_bytes = [chr((first << 12) + 0x915) for first in range(16) if first != 0xD] + ["\ud4e5"]
    four_bytes = [chr(code) for code in (0x10400, 0x40000, 0x80000, 0xC0000, 0x100000)]
    return " ".join(ascii_ + two_bytes + three_bytes + four_bytes)


_EVERY_BYTE = _every_byte()


def read_tokenizer(folder: Path, files: list[Path]) -> Tokenizer:
    """The tokenizer of a folder, of which `files` are its tokenizer's.

    Raises:
      UserError: nothing usable there, or files that contradict each other, by name.
    """
    present = {file.name for file in files}
    contents: dict[str, Any] = {}
    for name in (SETTINGS_NAME, _MAP_NAME, _ADDED_NAME):
        if name in present:
            contents[name] = read_json(folder / name)
    for name, content in contents.items():
        refuse_code(content, folder / name)
    raw = contents.get(SETTINGS_NAME, {})
    # both libraries raise many types
    with errors.user_errors(f"{folder}: no usable tokenizer", _REMEDY, (Exception,)):
        if FILE_NAME in present:
            backend = _read_file(folder / FILE_NAME, raw, contents.get(_ADDED_NAME, {}))
            special = _special_tokens(raw, contents.get(_MAP_NAME, {}))
        else:
            _refuse_other_vocabularies(folder, present, raw)
            backend, special = _build_of_merges(folder)
        extra = raw.get("additional_special_tokens") or raw.get("extra_special_tokens") or []
        if isinstance(extra, dict):
            extra = list(extra.values())
        settings = Settings(
            special_tokens_map=special,
            extra_special=tuple(_text(token) for token in extra),
            adds_bos=raw.get("add_bos_token") is True and "bos_token" in special,
            chat_templates=_chat_templates(folder, raw),
            eos_ids=_eos_ids(folder),
        )
    try:
        return Tokenizer(backend, settings)
    except errors.UserError as error:
        raise errors.UserError(f"{folder}: {error}") from error


def _read_file(file: Path, raw: dict[str, Any], added: dict[str, Any]) -> Backend:
    """What tokenizer.json describes, unless something beside it contradicts it: `raw`, the
    settings, or `added`, which old folders have as a file of its own.
    """
    backend = Backend.from_file(str(file))
    dropout = getattr(backend.model, "dropout", None)
    if dropout:
        raise errors.UserError(
            f"{file}: dropout={dropout} makes the ids of a text random; set it to null"
        )
    settings_file = file.with_name(SETTINGS_NAME)
    if raw.get("split_special_tokens"):
        raise errors.UserError(
            f"{settings_file}: split_special_tokens=true would cut <|markers|> of templates to"
            " pieces; set it to false"
        )
    listed = [(_text(token), id_) for id_, token in raw.get("added_tokens_decoder", {}).items()]
    _refuse_other_ids(settings_file, listed, backend)
    if "added_tokens_decoder" not in raw:
        # transformers ignores the file in other folders.
        _refuse_other_ids(file.with_name(_ADDED_NAME), list(added.items()), backend)
    return backend


def _refuse_other_ids(file: Path, listed: Sequence[tuple[str, Any]], backend: Backend) -> None:
    """UserError where `file` lists tokens, with their ids, that tokenizer.json has not so."""
    problems = []
    for text, id_ in listed:
        found = backend.token_to_id(text)
        if found is None:
            problems.append(f"token {text!r} is {id_} there, {FILE_NAME} has no such token")
        elif found != int(id_):
            problems.append(f"token {text!r} is {id_} there, {FILE_NAME} has it as {found}")
    if problems:
        more = ""
        if len(problems) > 1:
            more = f" (and {len(problems) - 1} more)"
        raise errors.UserError(
            f"{file}: {problems[0]}{more}; take both files from the same model, or save the"
            " tokenizer anew with transformers (save_pretrained)"
        )


def _text(token: str | dict[str, Any]) -> str:
    """The text of a special token, which files give as it is or with its flags."""
    if isinstance(token, dict):
        return token["content"]
    return token


def _special_tokens(raw: dict[str, Any], map_: dict[str, Any]) -> dict[str, str]:
    """Name -> text. `map_` is a file of old folders; transformers ignores it in others."""
    values = raw
    if "added_tokens_decoder" not in raw:
        values = raw | map_
    return {name: _text(values[name]) for name in _NAMED if values.get(name) is not None}


def _refuse_other_vocabularies(folder: Path, present: set[str], raw: dict[str, Any]) -> None:
    """UserError unless a vocabulary has merges, and a class that says how text is split."""
    if {"vocab.json", "merges.txt"} <= present:
        class_ = raw.get("tokenizer_class")
        if class_ in _CLASSES_OF_MERGES:
            return
        raise errors.UserError(
            f"{folder}: no {FILE_NAME}, and vocab.json and merges.txt do not say how text is split,"
            f" nor does tokenizer_class={class_!r}; {_REMEDY}"
        )
    others = sorted(file.name for pattern in _OTHER_VOCABULARIES for file in folder.glob(pattern))
    if not others:
        raise errors.UserError(
            f"{folder}: no usable tokenizer (no {FILE_NAME}, nor a vocabulary); {_REMEDY}"
        )
    raise errors.UserError(
        f"{folder}: no usable tokenizer (no {FILE_NAME}; {others[0]} alone is not read, because"
        f" programs differ in what they make of it); {_REMEDY}, or make one with transformers,"
        " where AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
    )


def _build_of_merges(folder: Path) -> tuple[Backend, dict[str, str]]:
    """What transformers makes of vocab.json and merges.txt, and its special tokens."""
    # it would announce that torch is absent, as it should be
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return made.backend_tokenizer, made.special_tokens_map


def _chat_templates(folder: Path, raw: dict[str, Any]) -> dict[str, str]:
    """Name -> source; the default one is in a file of its own, or among the settings."""
    given = raw.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        for entry in given:
            templates[entry["name"]] = entry["template"]
    elif given is not None:
        templates.update(given)
    file = folder / _TEMPLATE_NAME
    if file.is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    return templates


def _eos_ids(folder: Path) -> dict[str, list[int]]:
    """What generation_config.json and config.json say ends a text, by file.

    Raises:
      UserError: something that can be no token of the model.
    """
    contents: dict[str, Any] = {}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            contents[name] = read_json(folder / name)
    size = contents.get("config.json", {}).get("vocab_size")
    found = {}
    for name, content in contents.items():
        value = content.get("eos_token_id")
        ids = value
        if value is None:
            ids = []
        elif not isinstance(value, list):
            ids = [value]
        if not all(_is_token_id(id_, size) for id_ in ids):
            below = f" below vocab_size={size}" if type(size) is int else ""
            raise errors.UserError(
                f"{folder / name}: eos_token_id={json.dumps(value)} should be the number of a"
                f" token{below}, or a list of them; correct it, or remove the key"
            )
        if ids:
            found[name] = ids
    return found


def _is_token_id(id_: Any, size: Any) -> bool:
    """Whether it can be the number of a token, of `size` where that is known."""
    # `type`, because True is an int by inheritance
    if type(id_) is not int or id_ < 0:
        return False
    return type(size) is not int or id_ < size


# What classes of transformers have been seen to read otherwise than their file: digits, runs of
# spaces, composed and decomposed letters, scripts, line breaks, code. Special tokens are added.
_PROBES = (
    "6  5",
    "1234567 12 3.14",
    "x²½ ١٢٣",
    " a",
    "a  b   c    d",
    "  x",
    "x ",
    "\t\tx",
    "\n\nx\r\n",
    "a .b , c ?",
    "e\u0301 \u00e9",
    "\u1100\u1161 가",
    "ﬁ ™ Ⅷ",
    "İstanbul ß",
    "a\u00a0b\u3000c\u200bd",
    "▁a Ġb",
    "你好，世界。",
    "こんにちは",
    "Привет, мир",
    "שלום مرحبا",
    "नमस्ते ไทย",
    "👩\u200d👧 🇩🇪 👍🏽",
    "don't IT'S I'll",
    "def f(x):\n    return x ** 2",
    "\\frac{1}{2} + \\boxed{42}",
    "#### 7",
    "http://a.b/c?d=1",
)


def differs_in_transformers(folder: Path, tokenizer: Tokenizer) -> str:
    """How transformers reads a folder otherwise than its tokenizer.json says, if it does."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    named = [f"a {text} b{text}\n" for text in tokenizer.special_tokens_map.values()]
    texts = [*_PROBES, *named]
    program = f"transformers {transformers.__version__}"
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        found = theirs(texts, add_special_tokens=False)["input_ids"]
    except Exception as error:  # of many types
        return f"{program} cannot read the tokenizer ({errors.first_line(error)})"
    wrong = []
    for text, ids, encoding in zip(texts, found, tokenizer.encode_batch(texts), strict=True):
        if ids != encoding.ids:
            wrong.append(text)
    if not wrong:
        return ""
    return (
        f"{program} takes class {type(theirs).__name__} for the tokenizer, which gives other ids"
        f" than {FILE_NAME} for {len(wrong)} of {len(texts)} texts, as for {wrong[0]!r}; the model"
        " was trained on those of the file, which"
        " transformers.PreTrainedTokenizerFast.from_pretrained(FOLDER) reads as they are"
    )
