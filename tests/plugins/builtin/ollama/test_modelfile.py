"""Modelfiles: what is written, what the grammar cannot hold, which chat templates have a Go form."""

from collections.abc import Callable
from pathlib import Path

import pytest

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError
from apt.plugins.builtin.ollama.modelfile import CHAT_LAYOUTS, describe, recognise_layout, render

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_all_that_a_modelfile_says() -> None:
    text = render(
        {
            "from": "./x.gguf", "num_ctx": 512, "stop": ["<end>", 'say "no" now'], "template": "{{ .Prompt }}\n",
            "system": "Be brief.", "parameters": {"temperature": 0.5}, "license": "Apache\nLicense",
        }
    )  # fmt: skip
    assert text == (
        'FROM ./x.gguf\nTEMPLATE """{{ .Prompt }}\n"""\nSYSTEM """Be brief."""\nPARAMETER num_ctx 512\n'
        'PARAMETER stop "<end>"\nPARAMETER stop """say "no" now"""\nPARAMETER temperature 0.5\n'
        'LICENSE """Apache\nLicense"""\n'
    )


def test_minimal() -> None:
    assert render({"from": "llama3", "stop": "x"}) == 'FROM llama3\nPARAMETER stop "x"\n'


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"from": "a\nb"},
        {"from": "x", "colour": "red"},
        {"from": "x", "system": 'three """ quotes'},
        {"from": "x", "template": 'ends with "'},
        {"from": "x", "stop": ['ends with "']},
        {"from": "x", "parameters": {"a b": 1}},
        {"from": "x", "parameters": {"temperature": "1\nFROM y"}},
    ],
)
def test_what_the_grammar_cannot_hold(model: dict) -> None:
    with pytest.raises(BadInputError):
        render(model)


def test_of_a_checkpoint_without_chat(llama_dir: Path) -> None:
    assert describe(Checkpoint.open(llama_dir), "x.gguf", 128) == {"from": "./x.gguf", "num_ctx": 128, "stop": ["</s>"]}


def test_of_a_chat_model(new_llama: Callable[..., Path], edit_json: Callable[..., None], tmp_path: Path) -> None:
    model = new_llama(tmp_path / "m")
    (model / "chat_template.jinja").write_text(CHATML)
    (model / "LICENSE").write_text('Use it """well""".\n')
    edit_json(model / "generation_config.json", eos_token_id=[1, 0])
    found = describe(Checkpoint.open(model), "x.gguf", 100_000)
    assert found["num_ctx"] == 8192
    assert found["stop"] == ["</s>", "<s>", "<|im_end|>"]
    assert found["template"] == CHAT_LAYOUTS[0].go
    assert "'''well'''" in render(found)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("\\n", " "),
        CHATML.replace("message['content']", "message['content'] | trim"),
        "{{ raise_exception('no') }}",
        "{{ messages[0]['content'] }}",
        "{% broken",
    ],
)
def test_other_templates_have_no_go_form(llama_dir: Path, template: str) -> None:
    tokenizer = Checkpoint.open(llama_dir).tokenizer()
    tokenizer.chat_template = template
    assert recognise_layout(tokenizer) is None


def test_layout_after_bos(llama_dir: Path) -> None:
    tokenizer = Checkpoint.open(llama_dir).tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    layout = recognise_layout(tokenizer)
    assert layout is not None
    assert layout.name == "chatml"


def test_a_template_without_end_does_not_hold_up_the_export(llama_dir: Path) -> None:
    tokenizer = Checkpoint.open(llama_dir).tokenizer()
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer.chat_template = CHATML + endless
    assert recognise_layout(tokenizer) is None
