"""``plugin search``: plugins that are installed, part of apt_model, or offered by a curated index."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from apt.console.table import Table
from apt.plugins import curated, host
from apt.plugins.curated import Offer
from apt.plugins.records import PluginRecord


@dataclass(frozen=True, slots=True)
class Hit:
    """A plugin that was found.

    :param state: its status where it is installed, else ``available``.
    :param source: where it comes from: ``built-in``, ``entry point``, ``drop-in``, ``index`` …
    :param requirement: what the index gives to pip for it.
    :param requires: plugins that it requires; ``conflicts``: those beside which it is not usable.
    :param install: the command that installs it or what it misses; ``""`` when there is nothing to install.
    """

    name: str
    version: str
    state: str
    source: str
    commands: tuple[str, ...]
    description: str
    author: str
    homepage: str
    requirement: str
    requires: tuple[str, ...]
    conflicts: tuple[str, ...]
    install: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of ``plugin search``; ``index`` is the curated index that was asked, ``""`` without one."""

    text: str
    index: str
    plugins: tuple[Hit, ...]

    def tables(self) -> list[Table]:
        """One line a plugin, with the command that installs it."""
        if not self.plugins:
            return [Table("", ("found",), [(f"no plugin matches {self.text!r}",)])]
        rows = [(h.name, h.version, h.state, h.source, h.description, h.install) for h in self.plugins]
        return [Table("", ("plugin", "version", "state", "source", "description", "install"), rows)]


def search(text: str = "", *, index: str = "") -> SearchResult:
    """Find plugins whose name, command, description or author holds every word of a text, in any script and case.

    :param index: path or address of a curated index; see :func:`apt.plugins.curated.offers`.
    :raises NetworkError, BadInputError: when the index cannot be had or is none.
    """
    offered = {offer.name: offer for offer in curated.offers(index)}
    records = host.current().data.plugins
    hits = [_installed(record, offered.get(record.name), index) for record in records]
    present = {r.name for r in records}
    hits += [_available(offer, index) for offer in offered.values() if offer.name not in present]
    words = _plain(text).split()
    found = tuple(h for h in hits if all(w in _text(h) for w in words))
    return SearchResult(text, curated.place_of(index), found)


def _text(hit: Hit) -> str:
    parts: Iterable[str] = (hit.name, *hit.commands, hit.description, hit.author, hit.requirement)
    return _plain("\n".join(parts))


def _plain(text: str) -> str:
    """Return a text without differences of case and of full and half width."""
    return unicodedata.normalize("NFKC", text).casefold()


def _installed(record: PluginRecord, offer: Offer | None, index: str) -> Hit:
    return Hit(
        record.name, record.version, record.status, record.source, record.commands, record.description, record.author,
        offer.homepage if offer else "", offer.requirement if offer else "",
        record.requires, record.conflicts,
        install_command(record.name, index) if record.status == "incomplete" else "",
    )  # fmt: skip


def _available(offer: Offer, index: str) -> Hit:
    return Hit(
        offer.name, offer.version, "available", "index", (), offer.description, offer.author, offer.homepage,
        offer.requirement, offer.requires, offer.conflicts, install_command(offer.name, index),
    )  # fmt: skip


def install_command(name: str, index: str) -> str:
    """Return the command that installs a plugin, with the index where it was named on the command line."""
    import shlex

    return f"apt_model plugin install {name}" + (f" --index {shlex.quote(index)}" if index else "")
