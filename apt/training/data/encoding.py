"""From a record of a file to tokens and what of them is trained on."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from apt.console.errors import BadInputError, UnsupportedError
from apt.training.contract import IGNORED


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document: token ids, and labels of the same length (unshifted, -100 where not trained on)."""

    ids: list[int]
    labels: list[int]


#: What a chat template has around the turns of the model, where it was made for training.
_GENERATION_MARK: Final = re.compile(r"{%-?\s*generation\b")

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

    A template with generation marks says itself what the assistant writes. With any other one, the text of a turn is
    what the template adds for it, found by rendering the conversation up to each turn; a template for which these
    renderings are no prefixes of one another is refused.

    :raises BadInputError: when the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise BadInputError("the tokenizer has no chat template", hint="train on prompt and completion instead")
    marked = list(roles) == ["assistant"] and _GENERATION_MARK.search(tokenizer.get_chat_template()) is not None

    def render(messages: Sequence[Any], *, prompt: bool) -> str:
        text: str = _apply(tokenizer, messages, tokenize=False, add_generation_prompt=prompt)
        return text

    def encode(record: Mapping[str, Any]) -> Encoded:
        messages = _messages(record, field)
        if marked:
            return _by_marks(tokenizer, messages)
        whole = render(messages, prompt=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] not in roles:
                continue
            opened = message["role"] == "assistant"  # the template writes the head of its turns only
            before, upto = render(messages[:i], prompt=opened) if i else "", render(messages[: i + 1], prompt=False)
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


def _by_marks(tokenizer: Any, messages: Sequence[Any]) -> Encoded:
    _needs_offsets(tokenizer)
    found = _apply(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    if not any(found["assistant_masks"]):
        raise ValueError("no turn of assistant")
    return _labelled(list(found["input_ids"]), [bool(m) for m in found["assistant_masks"]])


def _apply(tokenizer: Any, messages: Sequence[Any], **how: Any) -> Any:
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), **how)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the messages: {str(error).partition(chr(10))[0]}") from None


def _needs_offsets(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise UnsupportedError("the tokenizer cannot tell which characters a token stands for", hint="use a fast one")


def _spans(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], *, special: bool
) -> tuple[list[int], list[bool]]:
    """Tokens of a text, and which of them lie (in part) in one of the spans of characters."""
    _needs_offsets(tokenizer)
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
    value = _value(record, field)
    if not isinstance(value, str):
        raise ValueError(f"expected a text in {field!r}, got {'nothing' if value is None else type(value).__name__}")
    if not value and not may_be_empty:
        raise ValueError(f"the text in {field!r} is empty")
    return value


def _messages(record: Mapping[str, Any], field: str) -> list[Any]:
    value = _value(record, field)
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of messages in {field!r}")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"each message in {field!r} needs a 'role' and a 'content'")
    # A table gives every message the keys of all; templates ask which keys there are.
    return [{k: v for k, v in message.items() if v is not None or k == "content"} for message in value]


def _value(record: Mapping[str, Any], field: str) -> Any:
    if field not in record:
        raise ValueError(f"no column {field!r}; there are {', '.join(map(repr, record))}")
    return record[field]
