"""Templates are tried in a child that may neither run long nor grow."""

import pytest

from apt.checkpoint.template import MAX_TEMPLATE_CHARACTERS, try_template
from apt.checkpoint.tokenizer_facts import TokenizerFacts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_sound_template_renders_as_transformers_renders_it() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "Hello, 你好 🙂"}]
    expected, _ = render_jinja_template([messages], chat_template=CHATML, add_generation_prompt=True)
    found = try_template(CHATML, None)
    assert (found.renders, found.takes_system, found.problem) == (True, True, "")
    assert found.example == expected[0]


def test_special_tokens_and_refused_system_messages() -> None:
    tokenizer = TokenizerFacts("BPE", 3, 2, {"bos": "<开始>"}, {"bos": 0}, True, True)
    template = "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    found = try_template(template, tokenizer)
    assert (found.renders, found.takes_system, found.example) == (True, False, "<开始>x")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1"),
        ("{{ raise_exception('坏') }}", "TemplateError: 坏"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more time or memory"),
        ("{{ 'a' * 9999999999 }}", "memory"),
    ],
)
def test_what_does_not_render_says_why(template: str, words: str) -> None:
    found = try_template(template, None)
    assert found.renders is False and words in found.problem


def test_an_endless_text_is_not_tried() -> None:
    found = try_template("x" * (MAX_TEMPLATE_CHARACTERS + 1), None)
    assert found.renders is None and "not tried" in found.problem
