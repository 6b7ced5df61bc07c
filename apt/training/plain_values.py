"""Values that a config may hold at all, before any schema is asked: words as keys, finite numbers, bounded depth."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from apt.document import Location

#: Sections within sections; no config comes near it.
MAX_DEPTH: Final = 50
#: What a counter of torch or numpy can hold.
MAX_INT: Final = 2**63 - 1

_Fault = Callable[[Location, str, str], None]


def plain(value: Any, fault: _Fault, at: Location = ()) -> Any:
    """Return the value without what no setting can be; each such thing is told as a fault.

    :param fault: told the place, what is wrong, and how to mend it.
    """
    if len(at) > MAX_DEPTH:
        fault(at[:4], "nested too deep", f"at most {MAX_DEPTH} levels")
        return None
    if isinstance(value, Mapping):
        return _mapping(value, fault, at)
    if isinstance(value, (list, tuple)):
        return [plain(v, fault, (*at, i)) for i, v in enumerate(value)]
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and not _is_text(value):
        fault(at, f"expected a text, got {value!a}", "")
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        fault(at, f"expected a finite number, got {value}", "")
        return 0.0
    if isinstance(value, int) and abs(value) > MAX_INT:
        fault(at, "the number does not fit into 64 bits", "")
        return 0
    return value


def _mapping(value: Mapping[Any, Any], fault: _Fault, at: Location) -> dict[str, Any]:
    kept = {}
    for key, inner in value.items():
        if isinstance(key, str) and _is_text(key):
            kept[key] = plain(inner, fault, (*at, key))
        else:
            fault(at, f"a key must be a word, got {key!a}", "")
    return kept


def _is_text(value: str) -> bool:
    """Whether a text can be written; half of a surrogate pair cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in value)
