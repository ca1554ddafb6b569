"""An exported folder sent to the Hub, as one commit of a repository."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dft_jax.models.hf.export_adapter import ADAPTER_FOLDER
from dft_jax.models.hf.locate import (
    ADDITIONAL_TEMPLATES,
    CHECKPOINT_PATTERNS,
    TOKENIZER_PATTERNS,
)
from dft_jax.models.hf.provenance import PROVENANCE_NAME, provenance
from dft_jax.runtime import errors

# What an earlier export may have more of than this one. Left there, transformers would take the old
# model.safetensors before the new index, the old chat_template.jinja before the new settings', and
# an old adapter_config.json for what the whole is.
_STALE = [
    "*.safetensors",
    "*.safetensors.index.json",
    *CHECKPOINT_PATTERNS,
    *TOKENIZER_PATTERNS,
    f"{ADDITIONAL_TEMPLATES}/*.jinja",
    f"{ADAPTER_FOLDER}/*",
]
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth")
_LOG_IN = "`hf auth login`, or HF_TOKEN, with a token that may write"
# By status: what it means, and what to do.
_STATUS = {
    401: ("the Hub does not know the token", _LOG_IN),
    403: ("the token may not write there", f"give another OWNER, or {_LOG_IN}"),
    404: ("the Hub has no such place", "correct OWNER and NAME; an organization has to be there"),
}


def require_name(name: str, setting: str = "--push") -> None:
    """UserError for what can be no repository of the Hub; `setting` is what the user calls it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        # The Hub's own rule knows names without an owner, and older ones a newline at the end.
        is_right = name.count("/") == 1 and name.strip() == name
    except HFValidationError:
        is_right = False
    if not is_right:
        raise errors.UserError(
            f"{setting}={name!r} should be OWNER/NAME, as in me/qwen-gsm8k-dft: letters, digits,"
            " '-', '_' and '.', without an address before it"
        )


def push(folder: Path, name: str, *, is_public: bool = False) -> str:
    """Makes the files of an export those of a repository, which is made where there is none.

    Args:
      folder: an export.
      name: OWNER/NAME.
      is_public: of a repository that is made here; one that is there stays as public as it is.

    Returns:
      Its address, and whether it is public or private.

    Raises:
      UserError: no token, no right, no network, or the repository holds what is no export; the
        folder is as it was.
    """
    require_name(name)
    with _reported(name, folder):
        import huggingface_hub

        if huggingface_hub.get_token() is None:
            raise errors.UserError(f"there is no token; {_LOG_IN}")
        api = huggingface_hub.HfApi()
        is_private = _is_private(api, name)
        if is_private is None:
            api.create_repo(name, private=not is_public, exist_ok=True)
            is_private = not is_public
        sent = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=_message(folder),
            delete_patterns=_STALE,
        )
    visibility = "public"
    if is_private:
        visibility = "private"
    return f"{sent.repo_url} ({visibility})"


def _is_private(api: Any, name: str) -> bool | None:
    """Of a repository that is there; None where none is, or none that this token may see.

    Raises:
      UserError: it holds a model that is no export of this package, and may be somebody's work.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(name)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            # The Hub answers so to no token and a wrong one, and in part for what is not there.
            api.whoami()
        return None
    held = [file.rfilename for file in info.siblings or []]
    has_weights = any(file.endswith(_WEIGHTS) for file in held)
    if has_weights and PROVENANCE_NAME not in held:
        raise errors.UserError(
            "it holds a model that dft_jax has not exported; give another NAME, or remove it there"
        )
    return bool(info.private)


def _message(folder: Path) -> str:
    about = provenance(folder) or {}
    if not about.get("objective"):
        return "Export of dft_jax"
    return f"Export of dft_jax: {about['objective']}, {about['step']} steps"


@contextlib.contextmanager
def _reported(name: str, folder: Path) -> Iterator[None]:
    """Makes one line of what the Hub, or the way to it, raises; another exception is ours."""
    try:
        yield
    except Exception as error:
        problem = _problem(error)
        if not problem:
            raise
        later = f"hf upload {name} {shlex.quote(str(folder))} --private"
        raise errors.UserError(
            f"--push={name}: {problem}. The export is complete in {folder}; `{later}` sends it, too"
        ) from error


def _problem(error: Exception) -> str:
    """What went wrong with its remedy; empty for what is no matter of the Hub."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, errors.UserError):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it, or send the folder from elsewhere"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in _STATUS:
            problem, remedy = _STATUS[status]
            return f"{problem} ({status}); {remedy}"
        return f"the Hub answered {errors.first_line(error)}; try again"
    # The Hub's library has its own of connections, by the library that it makes them with.
    is_of_network = type(error).__module__.startswith("httpx") or isinstance(error, OSError)
    if is_of_network:
        return f"the Hub cannot be reached ({errors.first_line(error)}); try again"
    # What ends the upload of a large file comes inside another error.
    if isinstance(error.__cause__, Exception):
        return _problem(error.__cause__)
    return ""
