"""Chat templates, rendered in a process of their own: a template is a program of a checkpoint.

transformers renders in jinja2's sandbox. That keeps a template from Python's internals, but not
from running for ever or filling the memory: nested loops, or `{{ 10**(10**9) }}`, one operation
that no signal interrupts. So it is rendered where it can be killed, sees nothing of this process,
and can do nothing but compute (see runtime/sandbox.py).

What a template writes depends on nothing but its messages and the date it is given: `strftime_now`
reads that date, and whatever draws random numbers (the filter `random`, `lipsum`) is refused.
"""

import datetime
import sys
from collections.abc import Sequence
from typing import Any

from dft_jax.runtime import sandbox, system
from dft_jax.runtime.sandbox import Worker

RENDER_S = 10.0  # for one conversation, which takes some microseconds
MEMORY_GB = 1.0
MOST_CHARACTERS = 2**24
# What a template may do to end a run, by the outcome that `render` gives for it.
RUNAWAY = {
    sandbox.LATE: f"took more than {RENDER_S:.0f} s",
    sandbox.DEAD: "ended the process that rendered it",
    sandbox.REFUSED: "tried to act, where it should only write text",
    "memory": f"needed more than {MEMORY_GB:g} GiB of memory",
    "long": f"wrote more than {MOST_CHARACTERS:,} characters",
    "random": "drew a random number, so no run could be repeated",
}
_SHOWN = 300  # characters of a template's own complaint
_CODE_NAME = "<template>"  # under which jinja2 compiles a template

# (messages, add_generation_prompt): with a prompt for the next answer or without.
Beginning = tuple[list[dict], bool]
Rendered = tuple[str, str]  # outcome, text

# Of this process: started by the first rendering, replaced when it is over.
_worker: Worker | None = None


def render(
    template: str,
    variables: dict[str, Any],
    messages: list[dict],
    add_generation_prompt: bool,
    date: str = "",
) -> Rendered:
    """Renders one conversation as transformers does.

    Returns:
      ("text", rendered), ("syntax", "LINE: problem"), ("refused the row", why), ("failed", why), or
      an outcome of RUNAWAY and "".
    """
    [rendered] = render_all(template, variables, [(messages, add_generation_prompt)], date)
    return rendered


def render_all(
    template: str, variables: dict[str, Any], beginnings: Sequence[Beginning], date: str = ""
) -> list[Rendered]:
    """As `render`, for several beginnings of a conversation at once.

    Args:
      date: YYYY-MM-DD, what `strftime_now` takes for today; empty for today itself.

    Returns:
      One for each beginning, up to the first whose outcome is not "text".
    """
    global _worker
    if _worker is None or _worker.process.poll() is not None:
        _worker = Worker("dft_jax.data.rendering:serve", RENDER_S)
    reply = _worker.ask([template, variables, beginnings, date])
    # The next conversation gets a new one.
    if _worker.is_over:
        _worker.kill()
        _worker = None
    if isinstance(reply, str):
        return [(reply, "")]
    return [(outcome, text) for outcome, text in reply]


# ---- what runs in the worker


def serve(pipe_number: str, wall_s: str) -> None:
    """The entry point of the worker: conversations come in, text or what went wrong goes out."""
    sandbox.serve(pipe_number, wall_s, _prepare, compiles=_CODE_NAME)


class _Clock:
    """Stands in for `datetime` where transformers asks it for the time."""

    date = ""

    @classmethod
    def now(cls) -> datetime.datetime:
        if cls.date:
            return datetime.datetime.fromisoformat(cls.date)
        return datetime.datetime.now()


class _RandomError(Exception):
    """A template asked for a random number."""


def _refuse_random(*_: Any, **__: Any) -> None:
    raise _RandomError


def _prepare() -> sandbox.Answer:
    """Imports what renders, replaces what draws or tells the time, and limits the memory."""
    import jinja2.debug
    import jinja2.defaults
    from transformers.utils import chat_template_utils

    # It would compile a line of source for each frame of a traceback that nobody sees.
    jinja2.debug.rewrite_traceback_stack = lambda source=None: sys.exc_info()[1]
    # All that draws in the template language.
    filters = jinja2.defaults.DEFAULT_FILTERS  # pyright: ignore[reportPrivateImportUsage]
    filters["random"] = _refuse_random
    jinja2.defaults.DEFAULT_NAMESPACE["lipsum"] = _refuse_random
    chat_template_utils.datetime = _Clock  # pyright: ignore[reportPrivateImportUsage]
    sandbox.limit_memory(system.mapped_kib() * 1024 + int(MEMORY_GB * 2**30))
    # A transformers that takes the time from elsewhere would give templates today's date.
    [[_, day]], _ = _answer(["{{ strftime_now('%Y-%m-%d') }}", {}, [([], False)], "2001-02-03"])
    if day != "2001-02-03":
        raise RuntimeError(
            f"this transformers gives templates another date ({day}) than the one they are to have"
        )
    return _answer


def _answer(request: list) -> tuple[list[list[str]], bool]:
    """The replies to a request of `render_all`, and whether this process has to be replaced."""
    template, variables, beginnings, _Clock.date = request
    replies = []
    outcome = "text"
    for messages, add_generation_prompt in beginnings:
        outcome, text = _render_one(template, variables, messages, add_generation_prompt)
        replies.append([outcome, text])
        if outcome != "text":
            break
    return replies, outcome in ("memory", "long")


def _render_one(
    template: str, variables: dict[str, Any], messages: list[dict], add_generation_prompt: bool
) -> Rendered:
    import jinja2
    from transformers.utils import chat_template_utils

    try:
        [text], _ = chat_template_utils.render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except MemoryError:
        return "memory", ""
    except _RandomError:
        return "random", ""
    except jinja2.TemplateSyntaxError as error:
        return "syntax", f"{error.lineno}: {error.message}"[:_SHOWN]
    except jinja2.TemplateError as error:
        return "refused the row", str(error)[:_SHOWN]
    # The template is a small program: 'a' + 1 raises TypeError.
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:_SHOWN]
    if len(text) > MOST_CHARACTERS:
        return "long", ""
    return "text", text
