"""Whether a text's final answer is the right one."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Literal

from pydantic import Field, field_validator

from apt.training.contract import Resources
from apt.training.sections import Section

#: A number as texts write it, with separators of thousands.
_NUMBER: Final = re.compile(r"(?:(?<![\w)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


class ExactAnswerOptions(Section):
    """Options of ``exact_answer``."""

    name: Literal["exact_answer"] = Field(default="exact_answer", description="The component.")
    pattern: str | None = Field(
        default=None,
        description="A regular expression whose last match, or its first group, is the answer; when absent, the last "
        "number is.",
    )
    key: str = Field(default="answer", min_length=1, description="The entry of a row that holds the right answer.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from None
        return value


class ExactAnswer:
    """1 for a text that ends in the right answer, 0 for any other; ``None`` where the row has no answer.

    Numbers are compared by value (``1,000`` is ``1000.0``), other answers letter by letter. A right answer
    that is a whole solution counts by its own last number; where it has none, the text has to end with it.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, options: ExactAnswerOptions, resources: Resources) -> None:
        self._pattern = re.compile(options.pattern) if options.pattern is not None else None
        self._key = options.key

    def __call__(self, texts: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Return 1, 0 or ``None`` for each text."""
        return [self._judge(text, facts.get(self._key)) for text, facts in zip(texts, meta, strict=True)]

    def _judge(self, text: str, answer: Any) -> float | None:
        if answer is None or not str(answer).strip():
            return None
        wanted = str(answer).strip()
        if self._pattern is not None:
            given = last_match(self._pattern, text)
        else:
            number = last_match(_NUMBER, wanted)
            if number is None:
                return float(re.search(rf"(?<!\w){re.escape(wanted)}[\s.!。]*$", text) is not None)
            wanted, given = number, last_match(_NUMBER, text)
        return float(given is not None and _same(given.strip(), wanted))


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """Return a pattern's last match in a text, or that match's first group."""
    found = None
    for match in pattern.finditer(text):
        found = match
    if found is None:
        return None
    return found.group(1 if pattern.groups else 0)


def _same(given: str, wanted: str) -> bool:
    if _NUMBER.fullmatch(given) and _NUMBER.fullmatch(wanted):
        return Decimal(given.replace(",", "")) == Decimal(wanted.replace(",", ""))
    return given == wanted
