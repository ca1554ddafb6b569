"""Chat templates, rendered in a process of their own: a template is a program that came with a checkpoint.

transformers renders in jinja2's sandbox. That keeps a template from Python's internals, but not from going on for ever
or filling the memory: nested loops, or `{{ 10**(10**9) }}`, one operation that no signal interrupts. So it is rendered
where it can be killed, sees nothing of this process, and can do nothing but compute (see workers.py).
"""

from typing import Any

from dft_jax import workers
from dft_jax.workers import Worker

RENDER_S = 10.0  # for one conversation, which takes some microseconds
MEMORY_GB = 1.0
MOST_CHARACTERS = 2**24
# What a template may do to end a run, by the outcome that `render` gives for it.
RUNAWAY = {
    workers.LATE: f"took more than {RENDER_S:.0f} s",
    workers.DEAD: "ended the process that rendered it",
    workers.REFUSED: "tried to act, where it should only write text",
    "memory": f"needed more than {MEMORY_GB:g} GiB of memory",
    "long": f"wrote more than {MOST_CHARACTERS:,} characters",
}
_MOST_WORDS = 300  # of a template's own complaint
_CODE_NAME = "<template>"  # under which jinja2 compiles a template

_worker: Worker | None = None  # of this process: started by the first rendering, replaced when it is over


def render(template: str, variables: dict[str, Any], messages: list[dict], add_generation_prompt: bool) -> tuple:
    """Renders one conversation as transformers does.

    Returns:
      ("text", rendered), ("syntax", "LINE: problem"), ("refused the row", why), ("failed", why), or an outcome of
      RUNAWAY and "".
    """
    global _worker
    if _worker is None or _worker.process.poll() is not None:
        _worker = Worker("dft_jax.data.rendering:serve", RENDER_S)
    reply = _worker.ask([template, variables, messages, add_generation_prompt])
    if _worker.is_over:
        _worker.kill()
        _worker = None
    return (reply, "") if isinstance(reply, str) else tuple(reply)


# ---- what runs in the worker ----------------------------------------------------------------------------------------


def serve(pipe_number: str, wall_s: str) -> None:
    """The entry point of the worker: conversations come in, text or what went wrong goes out."""
    workers.serve(pipe_number, wall_s, _prepare, compiles=_CODE_NAME)


def _prepare() -> workers.Answer:
    import sys

    import jinja2.debug
    from transformers.utils.chat_template_utils import render_jinja_template

    # It would compile a line of source for each frame of a traceback that nobody sees.
    jinja2.debug.rewrite_traceback_stack = lambda source=None: sys.exc_info()[1]
    workers.limit_memory(workers.mapped_kib() * 1024 + int(MEMORY_GB * 2**30))

    def answer(request: list) -> tuple[list[str], bool]:
        template, variables, messages, add_generation_prompt = request
        try:
            [text], _ = render_jinja_template(
                [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **variables
            )
        except MemoryError:
            return ["memory", ""], True
        except jinja2.TemplateSyntaxError as error:
            outcome, text = "syntax", f"{error.lineno}: {error.message}"[:_MOST_WORDS]
        except jinja2.TemplateError as error:
            outcome, text = "refused the row", str(error)[:_MOST_WORDS]
        except Exception as error:  # the template is a small program: 'a' + 1 raises TypeError
            outcome, text = "failed", f"{type(error).__name__}: {error}"[:_MOST_WORDS]
        else:
            outcome = "text"
        return ([outcome, text], False) if len(text) <= MOST_CHARACTERS else (["long", ""], True)

    return answer
