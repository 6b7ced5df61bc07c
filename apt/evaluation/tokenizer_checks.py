"""Checks of a tokenizer: does text come back as it went in, does the chat template render."""

import unicodedata
from typing import Any, Final

from apt.checkpoint.template import try_template
from apt.checkpoint.tokenizer_facts import SPECIAL
from apt.console.errors import first_line
from apt.evaluation.behaviour import Check

#: What must come back, by what it shows.
ROUND_TRIPS: Final = {
    "English": "The quick brown fox doesn't jump over 13 lazy dogs; it's 5.5 °C.",
    "Chinese": "你好，世界！模型压缩之后还能说中文吗？",
    "emoji": "ok 😀👍🏽 👨‍👩‍👧 🇨🇳 done",
    "white space": "def f(x):\n\treturn  x\n\n\n    # four spaces \n",
}

#: Enough to see whether a template takes turns, and keeps what they say.
CONVERSATION: Final = (
    {"role": "user", "content": "Hello! 你好 😀"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye?"},
)


def round_trip(tokenizer: Any) -> Check:
    """Whether texts are the same after encoding and decoding.

    What a vocabulary does not hold and says so by its unknown token is told, not held against it; English must come
    back from any tokenizer.
    """
    exact, told = [], []
    for what, text in ROUND_TRIPS.items():
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back == text:
            exact.append(what)
        elif _same_text(back, text):
            told.append(f"{what} but for normalisation")
        elif what != "English" and tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            told.append(f"{what} not in the vocabulary")
        else:
            return Check("tokenizer round trip", False, f"{what}: {text[:40]!r} comes back as {back[:40]!r}")
    exactly = f"exact: {', '.join(exact)}" if exact else ""
    return Check("tokenizer round trip", True, "; ".join(filter(None, [exactly, *told])))


def _same_text(back: str, text: str) -> bool:
    """Whether two texts differ by Unicode normalisation and white space around words at most."""
    forms = [" ".join(unicodedata.normalize("NFKC", t).split()) for t in (back, text)]
    return forms[0] == forms[1]


def template_renders(tokenizer: Any) -> Check:
    """Whether the chat template, if there is one, renders a short conversation with what it says.

    It is tried in a process of bounded time and memory before transformers renders it here, without a bound.
    """
    name = "chat template"
    if not getattr(tokenizer, "chat_template", None):
        return Check(name, True, "none")
    special = {role: text for role in SPECIAL if (text := getattr(tokenizer, f"{role}_token", None))}
    try:
        tried = try_template(tokenizer.get_chat_template(), special)
        if tried.renders is not True:
            return Check(name, False, f"does not render: {tried.problem}")
        text = tokenizer.apply_chat_template(
            [dict(m) for m in CONVERSATION], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may raise anything
        return Check(name, False, f"does not render: {first_line(error)}")
    lost = [m["content"] for m in CONVERSATION if m["content"] not in text]
    if lost:
        return Check(name, False, f"leaves out what was said: {lost[0]!r}")
    return Check(name, True, f"renders {len(CONVERSATION)} turns to {len(text)} characters")
