"""Chat templates, rendered in a process of their own: a template is a program that came with a
checkpoint.

transformers renders in jinja2's sandbox. That keeps a template from Python's internals, but not
from going on for ever or filling the memory: nested loops, or `{{ 10**(10**9) }}`, one operation
that no signal interrupts. So it is rendered where it can be killed, sees nothing of this process,
and can do nothing but compute (see workers.py).

What a template writes depends on nothing but its messages and the date it is given: `strftime_now`
reads that date, and whatever draws random numbers (the filter `random`, `lipsum`) is refused.
"""

import datetime
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
_MOST_WORDS = 300  # of a template's own complaint
_CODE_NAME = "<template>"  # under which jinja2 compiles a template

# of this process: started by the first rendering, replaced when it is over
_worker: Worker | None = None


Rendered = tuple[str, str]  # outcome, text


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
    template: str, variables: dict[str, Any], asked: list[tuple[list[dict], bool]], date: str = ""
) -> list[Rendered]:
    """As `render`, for several beginnings of a conversation (messages, add_generation_prompt) at
    once.

    Args:
      date: YYYY-MM-DD, what `strftime_now` takes for today; empty for today itself.

    Returns:
      One for each that was asked, up to the first whose outcome is not "text".
    """
    global _worker
    if _worker is None or _worker.process.poll() is not None:
        _worker = Worker("dft_jax.data.rendering:serve", RENDER_S)
    reply = _worker.ask([template, variables, asked, date])
    if _worker.is_over:
        _worker.kill()
        _worker = None
    return [(reply, "")] if isinstance(reply, str) else [tuple(rendered) for rendered in reply]


# ---- what runs in the worker
# ----------------------------------------------------------------------------------------


def serve(pipe_number: str, wall_s: str) -> None:
    """The entry point of the worker: conversations come in, text or what went wrong goes out."""
    sandbox.serve(pipe_number, wall_s, _prepare, compiles=_CODE_NAME)


class _Clock:
    """Stands in for `datetime` where transformers asks it for the time."""

    date = ""

    @classmethod
    def now(cls) -> datetime.datetime:
        return datetime.datetime.fromisoformat(cls.date) if cls.date else datetime.datetime.now()


class _RandomError(Exception):
    """A template asked for a random number."""


def _refuse_random(*_: Any, **__: Any) -> None:
    raise _RandomError


def _prepare() -> sandbox.Answer:
    import sys

    import jinja2.debug
    import jinja2.defaults
    from transformers.utils import chat_template_utils

    # It would compile a line of source for each frame of a traceback that nobody sees.
    jinja2.debug.rewrite_traceback_stack = lambda source=None: sys.exc_info()[1]
    # All that draws in the template language.
    jinja2.defaults.DEFAULT_FILTERS["random"] = jinja2.defaults.DEFAULT_NAMESPACE["lipsum"] = (
        _refuse_random
    )
    chat_template_utils.datetime = _Clock
    sandbox.limit_memory(system.mapped_kib() * 1024 + int(MEMORY_GB * 2**30))

    def one(
        template: str, variables: dict[str, Any], messages: list[dict], add_generation_prompt: bool
    ) -> list[str]:
        try:
            [text], _ = chat_template_utils.render_jinja_template(
                [messages],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except MemoryError:
            return ["memory", ""]
        except _RandomError:
            return ["random", ""]
        except jinja2.TemplateSyntaxError as error:
            return ["syntax", f"{error.lineno}: {error.message}"[:_MOST_WORDS]]
        except jinja2.TemplateError as error:
            return ["refused the row", str(error)[:_MOST_WORDS]]
        except Exception as error:  # the template is a small program: 'a' + 1 raises TypeError
            return ["failed", f"{type(error).__name__}: {error}"[:_MOST_WORDS]]
        return ["text", text] if len(text) <= MOST_CHARACTERS else ["long", ""]

    def answer(request: list) -> tuple[list[list[str]], bool]:
        template, variables, asked, _Clock.date = request
        replies = []
        for messages, add_generation_prompt in asked:
            replies.append(one(template, variables, messages, add_generation_prompt))
            if replies[-1][0] != "text":
                break
        return replies, replies[-1][0] in ("memory", "long")

    [[_, day]], _ = answer(["{{ strftime_now('%Y-%m-%d') }}", {}, [([], False)], "2001-02-03"])
    if day != "2001-02-03":
        raise RuntimeError(
            f"this transformers gives templates another date ({day}) than the one they are to have"
        )
    return answer
