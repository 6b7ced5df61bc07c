"""``--set NAME=VALUE``: settings that a command does not know by name."""

from collections.abc import Sequence

from apt.console.errors import UsageError


def parse_settings(settings: Sequence[str], what: str = "INPUT") -> dict[str, str]:
    """Read ``["ratio=0.3"]`` as ``{"ratio": "0.3"}``.

    :param what: what is named before the ``=``, for the message.
    :raises UsageError: for one without ``=``, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"--set {text!r} is not {what}=VALUE")
        if name in found:
            raise UsageError(f"--set {name} is given twice")
        found[name] = value
    return found
