"""Ollama's Modelfile: where the weights are, how prompts are laid out, when to stop.

Ollama renders the Jinja template inside the GGUF itself; a Go ``TEMPLATE`` is written only where the checkpoint's
template is proved, by rendering probe conversations, to be one whose Go form is known. A wrong TEMPLATE is worse than
none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.template import render_conversations
from apt.console.errors import BadInputError

#: A context is memory; a longer one than this is left for the user to ask for.
MAX_NUM_CTX: Final = 8192
LICENSE_NAMES: Final = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_QUOTES: Final = '"""'

_USER: Final = {"role": "user", "content": "What is 2 + 2?"}
_PROBES: Final = (
    [_USER],
    [{"role": "system", "content": "You are terse.\nVery."}, _USER],
    [_USER, {"role": "assistant", "content": "4."}, {"role": "user", "content": " Sure?\n"}],
)


@dataclass(frozen=True, slots=True)
class ChatLayout:
    """A chat layout of one piece for each message.

    :param piece: a message, with ``{role}`` and ``{content}``.
    :param opening: what precedes the answer to come.
    :param go: the same as a Go template.
    """

    name: str
    piece: str
    opening: str
    go: str
    stop: tuple[str, ...]

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt of a conversation."""
        pieces = (self.piece.replace("{role}", m["role"]).replace("{content}", m["content"]) for m in messages)
        return "".join(pieces) + self.opening


CHAT_LAYOUTS: Final = (
    ChatLayout(
        "chatml",
        "<|im_start|>{role}\n{content}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        ("<|im_end|>",),
    ),
    ChatLayout(
        "llama3",
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|eot_id|>",),
    ),
    ChatLayout(
        "zephyr",
        "<|{role}|>\n{content}</s>\n",
        "<|assistant|>\n",
        "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n",
        ("</s>",),
    ),
)


def recognise_layout(tokenizer: Any) -> ChatLayout | None:
    """Return the known layout that the tokenizer's chat template renders exactly, if there is one."""
    try:
        template = tokenizer.get_chat_template() if getattr(tokenizer, "chat_template", None) else None
    except ValueError:  # several templates, and none of them is the default
        return None
    special = {role: getattr(tokenizer, f"{role}_token", None) for role in ("bos", "eos", "pad", "unk")}
    given = {role: text for role, text in special.items() if text is not None}
    # In a child process: the template came with the model, and could run for ever or fill the memory.
    rendered = None if template is None else render_conversations(template, given, _PROBES)
    if rendered is None:
        return None
    bos = tokenizer.bos_token or ""
    bare = [text.removeprefix(bos) for text in rendered]
    return next((x for x in CHAT_LAYOUTS if [x.render(m) for m in _PROBES] == bare), None)


def describe(checkpoint: Checkpoint, gguf_name: str, context: int) -> dict[str, Any]:
    """Return what the Modelfile of an exported checkpoint says; see :func:`render`."""
    tokenizer: Any = checkpoint.tokenizer()
    layout = recognise_layout(tokenizer)
    stop = [*_end_texts(checkpoint, tokenizer), *(layout.stop if layout else ())]
    found: dict[str, Any] = {"from": f"./{gguf_name}", "num_ctx": min(context, MAX_NUM_CTX)}
    if layout:
        found["template"] = layout.go
    if stop:
        found["stop"] = list(dict.fromkeys(stop))
    licence = next((p for name in LICENSE_NAMES if (p := checkpoint.path / name).is_file()), None)
    if licence is not None:
        found["license"] = _licence_text(licence)
    return found


def _licence_text(path: Path) -> str:
    # The grammar has no escape for three quotes; in a licence they can only be decoration.
    return path.read_text(encoding="utf-8", errors="replace").replace(_QUOTES, "'''")


def _end_texts(checkpoint: Checkpoint, tokenizer: Any) -> list[str]:
    """Texts of all end-of-sequence tokens; generation_config.json may name more than the tokenizer."""
    from apt.checkpoint.reader import read_json

    numbers: list[Any] = [tokenizer.eos_token_id]
    generation = checkpoint.path / "generation_config.json"
    stated = read_json(generation).get("eos_token_id") if generation.exists() else None
    numbers += stated if isinstance(stated, list) else [stated]
    texts = tokenizer.convert_ids_to_tokens([n for n in numbers if isinstance(n, int)])
    return [text for text in dict.fromkeys(texts) if isinstance(text, str)]


def render(model: Mapping[str, Any]) -> str:
    """Return a Modelfile.

    :param model: ``from`` (needed), ``num_ctx``, ``stop`` (a string or several), ``template``, ``system``,
        ``license``, ``parameters`` (any other PARAMETER, by name).
    :raises BadInputError: for a missing ``from``, an unknown key, or a text that the grammar cannot hold.
    """
    known = {"from", "num_ctx", "stop", "template", "system", "license", "parameters"}
    unknown = sorted(set(model) - known)
    if unknown:
        raise BadInputError(f"a Modelfile has no {unknown[0]!r}", hint=f"known: {', '.join(sorted(known))}")
    if not model.get("from"):
        raise BadInputError("a Modelfile needs 'from', the path or name of the model")
    lines = [f"FROM {_one_line('from', str(model['from']))}"]
    if model.get("template"):
        lines.append(f"TEMPLATE {_quoted('template', model['template'])}")
    if model.get("system"):
        lines.append(f"SYSTEM {_quoted('system', model['system'])}")
    if model.get("num_ctx"):
        lines.append(f"PARAMETER num_ctx {int(model['num_ctx'])}")
    stops = model.get("stop") or ()
    lines += [f"PARAMETER stop {_stop(stop)}" for stop in ([stops] if isinstance(stops, str) else stops)]
    for name, value in (model.get("parameters") or {}).items():
        if not str(name).replace("_", "").isalnum():
            raise BadInputError(f"{name!r} is not the name of a Modelfile parameter")
        lines.append(f"PARAMETER {name} {_one_line(str(name), str(value))}")
    if model.get("license"):
        lines.append(f"LICENSE {_quoted('license', model['license'])}")
    return "\n".join(lines) + "\n"


def _quoted(what: str, text: str) -> str:
    # A quote at the end would run into the closing three.
    if _QUOTES in text or text.endswith('"'):
        raise BadInputError(f"the {what} cannot stand in a Modelfile: it holds three quotes or ends with one")
    return f"{_QUOTES}{text}{_QUOTES}"


def _stop(text: str) -> str:
    """Quote a stop text; one with a quote in it stands in three."""
    if '"' in text or "\n" in text:
        return _quoted("stop", text)
    return f'"{text}"'


def _one_line(what: str, text: str) -> str:
    if "\n" in text or "\r" in text or not text.strip():
        raise BadInputError(f"{what} must be one line of text")
    return text
