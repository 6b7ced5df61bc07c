"""Conditions of a recipe: ``when: ${inputs.text} == self`` and ``expect: [perplexity.value <= 10]``.

Deliberately no language: two values and one comparison.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from apt.document import scalar
from apt.recipes import references
from apt.recipes.references import Reference, ReferenceFault

_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_PATTERN: Final = re.compile(r"\s*(?P<left>.+?)\s*(?P<operator>==|!=|<=|>=|<|>)\s*(?P<right>.+?)\s*")


class ConditionFault(Exception):
    """A condition that cannot be read or decided."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Condition:
    """``left operator right``; each side is a literal, a reference, or (in ``expect``) a field of the result."""

    text: str
    left: str
    operator: str
    right: str

    @classmethod
    def parse(cls, text: Any) -> "Condition":
        """Read a condition.

        :raises ConditionFault: when it has another form.
        :raises ReferenceFault: when a reference in it is malformed.
        """
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ConditionFault(f"{text!r} is no condition", "VALUE == VALUE, or one of != <= >= < >")
        condition = cls(text, match["left"], match["operator"], match["right"])
        _ = condition.references
        return condition

    @property
    def references(self) -> list[Reference]:
        """The references on both sides."""
        return references.parse(self.left) + references.parse(self.right)

    @property
    def field(self) -> tuple[str, ...] | None:
        """The field of the result that ``expect`` speaks of; ``None`` when the left side is a reference."""
        return None if "${" in self.left else tuple(self.left.split("."))

    def holds(self, scope: Mapping[str, Any], result: Any = None) -> bool:
        """Decide the condition.

        :param result: the step's result as plain values; with it a bare left side names a field.
        :raises ConditionFault: when a side is missing or the two cannot be compared.
        """
        left, right = self.values(scope, result)
        if left is None and self.operator not in ("==", "!="):
            raise ConditionFault(f"{self.text!r} cannot be decided: {self.left} has no value")
        try:
            return _OPERATORS[self.operator](left, right)
        except TypeError:
            raise ConditionFault(f"{self.text!r} compares {left!r} with {right!r}") from None

    def values(self, scope: Mapping[str, Any], result: Any = None) -> tuple[Any, Any]:
        """Return both sides' values."""
        try:
            if result is not None and self.field is not None:
                left = references.look_up(Reference(("result", *self.field)), {"result": result})
            else:
                left = _side(self.left, scope)
            return left, _side(self.right, scope)
        except ReferenceFault as fault:
            raise ConditionFault(fault.message, fault.hint) from None


def _side(text: str, scope: Mapping[str, Any]) -> Any:
    resolved = references.resolve(text, scope)
    if resolved != text:
        return resolved
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return scalar(text)
