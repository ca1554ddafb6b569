"""Chat templates: the text that transformers gives; no harm from those that mean some."""

import time

import pytest
import transformers

from dft_jax import assets
from dft_jax.data import rendering
from dft_jax.data.sources.rows import BadRow
from dft_jax.data.templates import STYLES, Template
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from tests.marks import slow_but
from tests.mutations import edit, overrides_for

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
QUESTION = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.TINY)


@pytest.fixture
def no_worker():
    """There is none before, and what the test has started is ended after it."""

    def end():
        if rendering._worker is not None:
            rendering._worker.kill()
        rendering._worker = None

    end()
    yield
    end()


def prompt(text, tokenizer, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(text)
    return Template(str(file), tokenizer).prompt("1+1?")


TOO_LONG = "took more than 10 s; fix the template, or choose one of plain"
HOSTILE = {
    "endless loop": (LOOP, TOO_LONG),
    "power bomb": ("{{ 10**(10**9) }}", TOO_LONG),
    "memory bomb": ("{{ 'a' * 10**11 }}", "needed more than 1 GiB of memory"),
    "memory bomb in a filter": ("{{ 'a' | center(10**11) }}", "needed more than 1 GiB of memory"),
    "a long text": ("{{ 'a' * 10**8 }}", "wrote more than 16,777,216 characters"),
    "attribute escape": (
        "{{ ''.__class__.__mro__ }}",
        "access to attribute '__class__' of 'str' object is unsafe",
    ),
    "escape by a global": ("{{ cycler.__init__.__globals__.os.environ }}", "attribute '__init__'"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a file": ("{% include '/etc/passwd' %}", "no loader for this environment"),
}


@pytest.mark.parametrize(
    "case", slow_but([case for case in HOSTILE if HOSTILE[case][1] is not TOO_LONG], list(HOSTILE))
)
def test_hostile_templates_are_refused(case, refused, tmp_path):
    text, expected = HOSTILE[case]
    overrides = overrides_for("tiny", edit("tokenizer_config.json", chat_template=text), tmp_path)
    start = time.monotonic()
    refused(overrides, ["template", "'tokenizer'", expected, "fix"])
    assert time.monotonic() - start < 15 + 5  # the command's own time, on a busy machine


def test_rendering_goes_on_after_a_runaway(tokenizer, tmp_path, monkeypatch, no_worker):
    monkeypatch.setattr(rendering, "RENDER_S", 1.0)
    before = prompt("{{ messages[0].content }}", tokenizer, tmp_path)
    first = rendering._worker.process
    with pytest.raises(errors.UserError, match="fix the template"):
        prompt(LOOP, tokenizer, tmp_path)
    assert first.returncode is not None and rendering._worker is None
    assert prompt("{{ messages[0].content }}", tokenizer, tmp_path) == before == "1+1?"
    rendering._worker.process.kill()
    rendering._worker.process.wait()  # as by the kernel, for want of memory
    assert prompt("{{ messages[0].content }}", tokenizer, tmp_path) == before


SAME = [
    None,  # the tokenizer's own
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    "|{{ tools }}|{{ documents }}|{{ add_generation_prompt }}",
    "{%- for m in messages -%}\n  {{- m.role | upper }}: {{ m['content'] | trim }}\n{% endfor %}\n",
    "{{ messages | tojson }} {{ messages | length }} {{ strftime_now('%Y') }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% break %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
    "{{ messages[0].nothing }}{{ unknown }}-{{ 'x y' | urlize }}{{ messages | pprint }}",
]


@pytest.mark.parametrize("template", SAME)
def test_the_text_is_that_of_transformers(template, tokenizer):
    template = template or tokenizer.get_chat_template()
    theirs = transformers.AutoTokenizer.from_pretrained(assets.TINY)
    odd = [
        {"role": "user", "content": ' a\r\n\u2028\x00"<&>\\n \ud800 é'},
        {"role": "assistant", "content": "{{ 1 }}"},
    ]
    for messages in (QUESTION, odd):
        for prompted in (False, True):
            expected = theirs.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompted
            )
            found = rendering.render(template, tokenizer.special_tokens_map, messages, prompted)
            assert found == ("text", expected)


def test_what_is_wrong_is_said(tokenizer, tmp_path):
    with pytest.raises(errors.UserError, match=r"template.jinja':2: Expected an expression"):
        prompt("a\n{% if %}", tokenizer, tmp_path)
    with pytest.raises(BadRow, match=r"refused the row \(no system turn\); fix"):
        prompt("{{ raise_exception('no system turn') }}", tokenizer, tmp_path)
    with pytest.raises(BadRow, match=r"failed \(TypeError: can only concatenate str"):
        prompt("{{ 'a' + 1 }}", tokenizer, tmp_path)


def test_named_styles_start_no_process(tokenizer, no_worker):
    for style in STYLES:
        Template(style, tokenizer).prompt("1+1?")
    assert rendering._worker is None


def test_many_rows_cost_little(tokenizer):
    """One process renders them all in some 0.1 s; minutes, if each had to start one."""
    template = Template("tokenizer", tokenizer)
    template.prompt("1+1?")
    process, start = rendering._worker.process, time.monotonic()
    for _ in range(1000):
        template.prompt("1+1?")
    assert rendering._worker.process is process and time.monotonic() - start < 10
