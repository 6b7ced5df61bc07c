"""The languages that pages are written in; what stands for English phrases is in the catalogue of messages."""

from collections.abc import Callable
from typing import Final

from apt import language as language_of_messages
from apt.console import catalogue
from apt.console.errors import UsageError

LANGUAGES: Final = ("en", "zh-CN")

Translate = Callable[[str], str]


def language(asked: str | None) -> str:
    """Return the language to write in: the one asked for, else that of messages (``APT_LANG``, the locale).

    :raises UsageError: for one that there is not.
    """
    word = asked or language_of_messages()
    plain = word.replace("_", "-").partition(".")[0].lower()
    if plain in ("zh", "zh-cn", "zh-hans"):
        return "zh-CN"
    if plain.partition("-")[0] == "en":
        return "en"
    raise UsageError(f"no page is written in {word!r}", hint=f"--lang {' or '.join(LANGUAGES)}")


def translator(lang: str) -> Translate:
    """Return the function that turns an English phrase into the language; an unknown phrase stays as it is."""
    return catalogue.load(lang).translate if lang != "en" else lambda text: text
