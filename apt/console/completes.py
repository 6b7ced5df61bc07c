"""The mark on an argument or option that says what a shell may complete there."""

from typing import Final

#: What a mark may name before a colon; see :class:`Completes`.
KINDS: Final = ("choices", "component", "directory", "file", "model", "plugin")


class Completes:
    """What the values of a parameter are: ``Annotated[str, typer.Option(…), Completes("model")]``.

    Only completion reads it: it is no check. Several may be given, and a shell then offers all of them.

    - ``choices:f16,q8_0``: these words;
    - ``component:strategy``: the names of the components of that kind, those of plugins among them;
    - ``model``: the embedded model, the names of the store, the Hugging Face cache, and paths;
    - ``plugin``, ``plugin:disabled``, ``plugin:enabled``: names of plugins;
    - ``file``, ``directory``: paths.

    :raises ValueError: for anything else.
    """

    __slots__ = ("values",)

    def __init__(self, *values: str) -> None:
        for value in values:
            kind, _, rest = value.partition(":")
            if kind not in KINDS or not value.isprintable() or " " in value or (kind in KINDS[:2] and not rest):
                raise ValueError(f"nothing can be completed by {value!r}; known: {', '.join(KINDS)}")
        self.values: Final = values
