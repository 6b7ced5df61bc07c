"""Events: how lower rooms tell what happens without knowing who listens.

The plugin host subscribes and hands events to the plugins' hooks of the same name; a library user may subscribe too.
"""

from collections.abc import Callable
from typing import Any

#: Called with the event's name and its facts.
Listener = Callable[..., object]

_listeners: list[Listener] = []


def subscribe(listener: Listener) -> Callable[[], None]:
    """Call ``listener(event, **facts)`` at every event; return a function that ends it."""
    _listeners.append(listener)

    def unsubscribe() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return unsubscribe


def announce(event: str, /, **facts: Any) -> None:
    """Tell the listeners of an event; names and facts are those of :mod:`apt.plugins.hookspecs`."""
    for listener in tuple(_listeners):
        listener(event, **facts)
