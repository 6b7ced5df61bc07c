"""Curated indexes: by path and over HTTP, bounded in size and time, and refused in one line when they are none."""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.console.errors import AptError, BadInputError, NetworkError, NotFoundError, UsageError
from apt.plugins import curated

ENTRY = {"name": "greet", "description": "问候", "requirement": "greet-plugin>=1"}
INDEX = json.dumps({"plugins": [ENTRY]}).encode()


def test_path_address_and_variable_name_an_index(
    tmp_path: Path, simple_index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "中文 index.json"
    path.write_bytes(b"\xef\xbb\xbf" + INDEX)
    simple_index.files["/index.json"] = INDEX
    simple_index.redirects["/moved"] = "/index.json"
    for place in (str(path), path.as_uri(), f"{simple_index.url}/index.json", f"{simple_index.url}/moved"):
        (offer,) = curated.offers(place)
        assert (offer.name, offer.description, offer.requirement) == ("greet", "问候", "greet-plugin>=1")
    assert curated.offers() == ()
    monkeypatch.setenv("APT_PLUGIN_INDEX", str(path))
    assert [o.name for o in curated.offers()] == ["greet"]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_redirections_stay_on_the_web(target: str, simple_index: Any) -> None:
    simple_index.redirects["/index.json"] = target
    with pytest.raises(NetworkError):
        curated.offers(f"{simple_index.url}/index.json")


def test_network_faults(simple_index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match="404"):
        curated.offers(f"{simple_index.url}/nothing.json")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(NetworkError, match="could not be fetched"):
            curated.offers(f"http://127.0.0.1:{unused.getsockname()[1]}/index.json")
    monkeypatch.setattr(curated, "_SECONDS", 0.3)
    simple_index.files["/index.json"] = INDEX
    simple_index.drip = True
    begun = time.monotonic()
    with pytest.raises(NetworkError, match=r"not received within 0\.3 s"):
        curated.offers(f"{simple_index.url}/index.json")
    assert time.monotonic() - begun < 0.1 * len(INDEX)  # it did not wait for the end


class Raw(socketserver.StreamRequestHandler):
    """A server that sends what it was given, a byte every hundredth of a second where it drips."""

    def handle(self) -> None:
        self.rfile.readline()
        self.server.asked += 1
        for i in range(0, len(self.server.answer), 1 if self.server.drips else 1 << 16):
            try:
                self.wfile.write(self.server.answer[i : i + (1 if self.server.drips else 1 << 16)])
            except OSError:  # nobody listens any more
                return
            time.sleep(0.01 if self.server.drips else 0)


@pytest.fixture
def raw() -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw) as server:
        server.daemon_threads, server.drips, server.asked = True, False, 0
        server.url = f"http://127.0.0.1:{server.server_address[1]}/index.json"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_headers_that_drip_and_redirections_without_end_are_given_up(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curated, "_SECONDS", 0.3)
    raw.answer, raw.drips = b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 100, True  # 6 s
    with pytest.raises(NetworkError, match=r"not received within 0\.3 s"):
        curated.offers(raw.url)
    raw.answer = b"HTTP/1.0 302 Found\r\nLocation: ?1\r\n\r\n"  # 0.4 s each, shorter than any one wait
    with pytest.raises(NetworkError):
        curated.offers(raw.url)
    assert raw.asked <= 3


def test_body_that_is_too_short_is_refused(raw: Any) -> None:
    raw.answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(INDEX) + 7, INDEX)
    with pytest.raises(NetworkError, match="7 bytes of it are missing"):
        curated.offers(raw.url)


def test_reason_of_a_server_reaches_no_terminal_as_it_is(raw: Any) -> None:
    raw.answer = b"HTTP/1.0 404 \x1b[31mred\x07\r\n\r\n"
    with pytest.raises(NetworkError, match="404") as refused:
        curated.offers(raw.url)
    assert str(refused.value).isprintable()


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        curated.offers(str(tmp_path / "none.json"))
    with pytest.raises(BadInputError, match="is not a file"):
        curated.offers(str(tmp_path))
    with pytest.raises(UsageError, match="no sound address"):
        curated.offers("http://[::1/index.json")
    for address in ("ftp://x/y", "file://other/x", "data://x"):
        with pytest.raises(UsageError, match="neither a file nor at an http"):
            curated.offers(address)


def test_size_is_bounded(tmp_path: Path, simple_index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curated, "_LARGEST", len(INDEX) - 1)
    (tmp_path / "index.json").write_bytes(INDEX)
    simple_index.files["/index.json"] = INDEX
    for place in (str(tmp_path / "index.json"), f"{simple_index.url}/index.json"):
        with pytest.raises(BadInputError, match="larger than 5 MB"):
            curated.offers(place)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "a b"}, "bad name 'a b'"),
        ({"name": 3}, "name is not a line of text"),
        ({"description": "a\nb"}, "description is not a line of text"),
        ({"description": "\x1b[31mred"}, "description is not a line of text"),
        ({"requirement": "--index-url=http://x"}, "bad requirement"),
        ({"requirement": ""}, "bad requirement ''"),
        ({"requirement": "torch>=3"}, "is no plugin"),
        ({"requires": "greet"}, "requires is not a list of plugin names"),
        ({"conflicts": ["../x"]}, "conflicts is not a list of plugin names"),
        ({"descripton": "x"}, "unknown field 'descripton' (did you mean 'description'?)"),
    ],
)
def test_bad_entries_are_named(change: dict, told: str) -> None:
    document = {"plugins": [ENTRY, {**ENTRY, "name": "second", **change}]}
    with pytest.raises(BadInputError) as refused:
        curated.parse(json.dumps(document).encode(), "x.json")
    assert "the index x.json, plugins[1]: " in str(refused.value) and told in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"plugins": 3}', b'{"plugins": [], "x": 1}', b"[" * 100_000])
def test_other_documents_are_no_index(data: bytes) -> None:
    with pytest.raises(BadInputError):
        curated.parse(data, "x.json")
    with pytest.raises(BadInputError, match="is there twice"):
        curated.parse(json.dumps({"plugins": [ENTRY, ENTRY]}).encode(), "x.json")


@settings(max_examples=200, deadline=None)
@given(
    entry=st.dictionaries(
        st.sampled_from(["name", "description", "requirement", "requires", "homepage", "x"]),
        st.none() | st.text(max_size=9) | st.integers() | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_any_entry_is_taken_or_refused(entry: dict) -> None:
    try:
        curated.parse(json.dumps({"plugins": [entry]}).encode(), "x.json")
    except AptError as error:
        assert "\n" not in str(error)
