"""A curated index: a JSON file, by path or address, that says which requirement brings which plugin.

    {"plugins": [{"name": "greet", "description": "Says hello.", "requirement": "greet-plugin>=1"}]}

Nobody is asked unless ``--index`` or ``APT_PLUGIN_INDEX`` names a file. The file says what to give to pip; what pip
fetches is looked at all the same before it is installed.
"""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.console.errors import AptError, BadInputError, NetworkError, UsageError, explain, first_line
from apt.plugins.completion_words import shown
from apt.plugins.dependencies import HELD
from apt.plugins.manifest import NAME
from apt.registry import did_you_mean

_LARGEST: Final = 5_000_000
_SECONDS: Final = 10.0
_TEXTS: Final = ("name", "description", "requirement", "version", "author", "homepage")
_LISTS: Final = ("requires", "conflicts")
_LONGEST: Final = 2_000
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Offer:
    """A plugin as an index offers it; ``requirement`` is what pip is asked for."""

    name: str
    description: str
    requirement: str
    version: str = ""
    author: str = ""
    homepage: str = ""
    requires: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


def offers(place: str = "") -> tuple[Offer, ...]:
    """Return what an index offers.

    :param place: path or ``http(s)``/``file`` address; ``APT_PLUGIN_INDEX`` when empty, and without that nothing.
    :raises NetworkError: when it cannot be fetched within 10 s.
    :raises BadInputError: when it is not an index; the entry and the field are named.
    """
    found = place_of(place)
    return parse(_read(found), found) if found else ()


def place_of(place: str) -> str:
    """Return the index that is asked when the command line says ``place``; ``""`` for none."""
    return place or os.environ.get("APT_PLUGIN_INDEX", "")


def _read(place: str) -> bytes:
    from urllib.parse import unquote, urlsplit

    try:
        address = urlsplit(place)
    except ValueError as error:
        raise UsageError(f"the index {place} has no sound address: {error}") from None
    if address.scheme in ("http", "https"):
        return _fetch(place)
    if address.scheme == "file" and address.netloc in ("", "localhost"):
        place = unquote(address.path)
    elif "://" in place:
        raise UsageError(f"the index {place} is neither a file nor at an http, https or file address")
    try:
        if not Path(place).is_file() and Path(place).exists():
            raise BadInputError(f"the index {place} is not a file")
        with Path(place).open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise explain(error) or AptError(f"the index {place} cannot be read: {error}") from None
    return _bounded(data, place)


def _bounded(data: bytes, place: str) -> bytes:
    if len(data) > _LARGEST:
        raise BadInputError(f"the index {place} is larger than 5 MB")
    return data


def _fetch(address: str) -> bytes:
    """Fetch an address within :data:`_SECONDS`, whatever its server does.

    A thread of its own asks: looking up a name, redirections and headers that drip are bounded by nothing else.
    """
    import threading

    came: list[bytes | AptError] = []
    asking = threading.Thread(target=lambda: came.append(_answer(address)), daemon=True, name="curated index")
    asking.start()
    asking.join(_SECONDS)
    answer = came[0] if came else _unfetched(address, f"not received within {_SECONDS:g} s")
    if isinstance(answer, AptError):
        raise answer
    return _bounded(answer, address)


def _unfetched(address: str, reason: str) -> NetworkError:
    return NetworkError(f"the index {shown(address)} could not be fetched: {shown(reason)}")


def _answer(address: str) -> bytes | AptError:
    """Return what an address holds or why it cannot be had; redirections lead to http and https only."""
    import http.client
    import urllib.error
    import urllib.request as web

    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler, web.UnknownHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPRedirectHandler,
        web.HTTPDefaultErrorHandler, web.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    deadline = time.monotonic() + _SECONDS
    data = bytearray()
    try:
        request = web.Request(address, headers={"User-Agent": "apt_model"})
        with opener.open(request, timeout=_SECONDS) as answer:
            # read1 returns what has come: a server that drips does not hold us beyond the deadline.
            while len(data) <= _LARGEST and (block := answer.read1(1 << 16)):
                data += block
                if time.monotonic() > deadline:
                    return _unfetched(address, f"not received within {_SECONDS:g} s")
            if not block and answer.length:
                return _unfetched(address, f"{answer.length} bytes of it are missing")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = first_line(error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return _unfetched(address, reason)
    return bytes(data)


def parse(data: bytes, place: str) -> tuple[Offer, ...]:
    """Return the offers in an index's bytes.

    :raises BadInputError: when they are not an index.
    """
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"the index {place} is not JSON: {first_line(error)}") from None
    entries = document.get("plugins") if isinstance(document, dict) else None
    if not isinstance(entries, list) or set(document) != {"plugins"}:
        raise BadInputError(f'the index {place} is not an object {{"plugins": [...]}}')
    found: dict[str, Offer] = {}
    for number, entry in enumerate(entries):
        try:
            offer = _offer(entry)
            if offer.name in found:
                raise BadInputError(f"{offer.name!r} is there twice")
        except BadInputError as error:
            raise BadInputError(f"the index {place}, plugins[{number}]: {error}") from None
        found[offer.name] = offer
    return tuple(found.values())


def _offer(entry: Any) -> Offer:
    if not isinstance(entry, dict):
        raise BadInputError("is not an object")
    for field, value in entry.items():
        if field in _LISTS:
            if not isinstance(value, list) or not all(isinstance(v, str) and NAME.fullmatch(v) for v in value):
                raise BadInputError(f"{field} is not a list of plugin names")
        elif field not in _TEXTS:
            raise BadInputError(f"unknown field {field!r}", hint=did_you_mean(field, (*_TEXTS, *_LISTS)))
        elif not isinstance(value, str) or len(value) > _LONGEST or _CONTROL.search(value):
            raise BadInputError(f"{field} is not a line of text")
    if not NAME.fullmatch(entry.get("name", "")):
        raise BadInputError(f"bad name {entry.get('name', '')!r}: letters, digits and dashes")
    _check_requirement(entry.get("requirement", ""))
    values: dict[str, Any] = {f: entry.get(f, "") for f in _TEXTS} | {f: tuple(entry.get(f, ())) for f in _LISTS}
    return Offer(**values)


def _check_requirement(text: str) -> None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        name = Requirement(text).name
    except InvalidRequirement as error:
        raise BadInputError(f"bad requirement {text!r}: {first_line(error)}") from None
    if name.lower() in HELD:
        raise BadInputError(f"the requirement {text!r} is no plugin")
