"""Templates are tried in a child that may neither run long nor grow."""

import pytest

from apt.checkpoint.template import MAX_TEMPLATE_CHARACTERS, try_template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_sound_template_renders_as_transformers_renders_it() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "Hello, 你好 🙂"}]
    expected, _ = render_jinja_template([messages], chat_template=CHATML, add_generation_prompt=True)
    found = try_template(CHATML, {})
    assert (found.renders, found.takes_system, found.problem) == (True, True, "")
    assert found.example == expected[0]


def test_special_tokens_and_refused_system_messages() -> None:
    template = "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template += "{{ messages[0].content }}"
    found = try_template(template, {"bos": "<开始>"})
    assert (found.renders, found.takes_system, found.example) == (True, False, "<开始>Hello, 你好 🙂")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1"),
        ("{{ raise_exception('坏') }}", "TemplateError: 坏"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more time or memory"),
        ("{{ 'a' * 9999999999 }}", "memory"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "message is not in the rendered text"),
    ],
)
def test_what_does_not_render_says_why(template: str, words: str) -> None:
    found = try_template(template, {})
    assert found.renders is False and words in found.problem


def test_what_marks_the_assistant_for_training_is_written_as_it_is() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    expected, _ = render_jinja_template([[{"role": "user", "content": "Hello, 你好 🙂"}]], chat_template=template)
    found = try_template(template, {})
    assert (found.renders, found.example) == (True, expected[0])


def test_a_long_text_is_told_in_part() -> None:
    found = try_template("{{ messages[0].content }}{{ 'x' * 1000000 }}", {})
    assert found.renders is True and found.example.startswith("Hello") and len(found.example) == 400


def test_an_endless_text_is_not_tried() -> None:
    found = try_template("x" * (MAX_TEMPLATE_CHARACTERS + 1), {})
    assert found.renders is None and "not tried" in found.problem
