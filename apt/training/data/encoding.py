"""From a record of a file to tokens and what of them is trained on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apt.console.errors import BadInputError, UnsupportedError
from apt.training.contract import IGNORED


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document: token ids, and labels of the same length (unshifted, -100 where not trained on)."""

    ids: list[int]
    labels: list[int]


#: Encodes a record; raises ValueError with what is wrong with it.
Encoder = Callable[[Mapping[str, Any]], Encoded]


def text_encoder(tokenizer: Any, field: str, *, append_eos: bool) -> Encoder:
    """Return an encoder of plain text: all of it is trained on but its first token."""
    eos = _eos(tokenizer) if append_eos else None

    def encode(record: Mapping[str, Any]) -> Encoded:
        ids = list(tokenizer(_string(record, field), verbose=False)["input_ids"])
        if eos is not None and (not ids or ids[-1] != eos):
            ids.append(eos)
        return Encoded(ids, [IGNORED, *ids[1:]] if ids else [])

    return encode


def completion_encoder(tokenizer: Any, prompt: str, completion: str, *, append_eos: bool) -> Encoder:
    """Return an encoder of prompts and completions, tokenized as one text; only the completion is trained on.

    A token that spans both counts to the completion.
    """
    eos = _eos(tokenizer) if append_eos else None

    def encode(record: Mapping[str, Any]) -> Encoded:
        given = _string(record, prompt, may_be_empty=True)
        whole = given + _string(record, completion)
        ids, counts = _spans(tokenizer, whole, [(len(given), len(whole))], special=True)
        if eos is not None and (not ids or ids[-1] != eos):
            ids, counts = [*ids, eos], [*counts, True]
        return _labelled(ids, counts)

    return encode


def chat_encoder(tokenizer: Any, field: str, roles: Sequence[str]) -> Encoder:
    """Return an encoder of conversations by the tokenizer's chat template; only the turns of ``roles`` are trained on.

    The text of a turn is what the template adds for it, found by rendering the conversation up to each turn. A
    template for which these renderings are no prefixes of one another is refused.

    :raises BadInputError: when the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise BadInputError("the tokenizer has no chat template", hint="train on prompt and completion instead")

    def render(messages: Sequence[Any], *, prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        return text

    def encode(record: Mapping[str, Any]) -> Encoded:
        messages = _messages(record, field)
        whole = render(messages, prompt=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] not in roles:
                continue
            before, upto = render(messages[:i], prompt=True) if i else "", render(messages[: i + 1], prompt=False)
            if not (whole.startswith(upto) and upto.startswith(before)):
                raise UnsupportedError(
                    "the chat template renders a turn differently when others follow: what the turn is cannot be told",
                    hint="train on prompt and completion instead",
                )
            spans.append((len(before), len(upto)))
        if not spans:
            raise ValueError(f"no turn of {', '.join(roles)}")
        return _labelled(*_spans(tokenizer, whole, spans, special=False))

    return encode


def _spans(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], *, special: bool
) -> tuple[list[int], list[bool]]:
    """Tokens of a text, and which of them lie (in part) in one of the spans of characters."""
    if not tokenizer.is_fast:
        raise UnsupportedError("the tokenizer cannot tell which characters a token stands for", hint="use a fast one")
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    counts = [
        end > begin and any(end > first and begin < last for first, last in spans)
        for begin, end in found["offset_mapping"]
    ]
    return list(found["input_ids"]), counts


def _labelled(ids: list[int], counts: Sequence[bool]) -> Encoded:
    labels = [token if counted else IGNORED for token, counted in zip(ids, counts, strict=True)]
    return Encoded(ids, [IGNORED, *labels[1:]] if labels else [])


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise BadInputError("the tokenizer has no end token", hint="set append_eos: false")
    return int(tokenizer.eos_token_id)


def _string(record: Mapping[str, Any], field: str, *, may_be_empty: bool = False) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise ValueError(f"expected a text in {field!r}, got {type(value).__name__}")
    if not value and not may_be_empty:
        raise ValueError(f"the text in {field!r} is empty")
    return value


def _messages(record: Mapping[str, Any], field: str) -> list[Any]:
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of messages in {field!r}")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"each message in {field!r} needs a 'role' and a 'content'")
    return value
