"""Models on a Hugging Face Hub: what a revision consists of, and moving files with their checksums checked.

``huggingface_hub`` (2.4) reports success when a downloaded file is not what its checksum says. Here every file is
hashed while it is received: large files by the SHA-256 that the Hub names them by, small ones by their git hash. A
file that does not match is an error. The Hub is the one that ``HF_ENDPOINT`` names; the token, proxies and the
HTTP client are those of ``huggingface_hub``.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.console.errors import AptError, BadInputError, NetworkError, NotFoundError, UsageError, first_line
from apt.store import hub_cache

#: What a repository may be called: ``name`` or ``owner/name``.
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_BLOCK_BYTES: Final = 2**20
#: Attempts to go on with a download that breaks off, each after a longer pause.
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a revision: large ones have a ``sha256``, small ones a ``git_oid`` (SHA-1 of the git blob)."""

    path: str
    size_bytes: int
    sha256: str
    git_oid: str

    @property
    def checksum(self) -> str:
        """The checksum that the content must have."""
        return self.sha256 or self.git_oid


@dataclass(frozen=True, slots=True)
class HubRevision:
    """A revision of a repository, pinned to its commit."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]


class Checksum:
    """Hashes a file as the Hub does: by SHA-256 or, where the Hub has none, as a git blob."""

    def __init__(self, file: HubFile) -> None:
        self._expected = file.checksum
        self.size_bytes = 0
        self._hash = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
        if not file.sha256:
            self._hash.update(f"blob {file.size_bytes}\0".encode())

    def update(self, data: bytes) -> None:
        """Take in a run of bytes."""
        self._hash.update(data)
        self.size_bytes += len(data)

    def matches(self) -> bool:
        """Whether what was taken in is the file."""
        return self._hash.hexdigest() == self._expected


def endpoint() -> str:
    """Return the Hub's address: ``HF_ENDPOINT``, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether the environment forbids asking the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def revision(repository: str, name: str = "main") -> HubRevision:
    """Ask the Hub for a revision (a branch, tag or commit) and its files.

    :raises NotFoundError: when the Hub has no such repository or revision, or does not show it to this user.
    :raises NetworkError: when the Hub cannot be reached.
    """
    check_repository(repository)
    if is_offline():
        raise NetworkError(f"{repository} cannot be looked up: HF_HUB_OFFLINE is set", hint="unset it")
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint())
    with told_plainly(repository):
        commit = str(api.model_info(repository, revision=name).sha)
        entries = [
            e for e in api.list_repo_tree(repository, revision=commit, recursive=True) if isinstance(e, RepoFile)
        ]
    if not _COMMIT.fullmatch(commit):
        raise BadInputError(f"{repository}: the Hub names no commit for the revision {name!r}")
    files = (
        HubFile(e.path, int(e.size), str(e.lfs.sha256) if e.lfs else "", "" if e.lfs else str(e.blob_id))
        for e in entries
    )
    return HubRevision(repository, commit, tuple(sorted(files, key=lambda f: f.path)))


def cached_revision(repository: str, name: str = "main") -> HubRevision | None:
    """Return a revision from the Hugging Face cache without asking the Hub; ``None`` when it is not there.

    The cache names a file by its checksum; a file that is no link to such a name cannot be checked and is left out.
    """
    check_repository(repository)
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    pointer = folder / "refs" / name
    commit = name
    with suppress(OSError):
        commit = pointer.read_text(encoding="ascii").strip()
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    files = []
    for path in sorted(snapshot.rglob("*")):
        if path.is_symlink() and path.is_file():
            checksum = path.readlink().name
            sha256 = checksum if len(checksum) == 64 else ""
            name_in_repo = path.relative_to(snapshot).as_posix()
            files.append(HubFile(name_in_repo, path.stat().st_size, sha256, "" if sha256 else checksum))
    return HubRevision(repository, commit, tuple(files))


def check_repository(repository: str) -> None:
    """Refuse what cannot be the name of a repository.

    :raises UsageError: naming it.
    """
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UsageError(f"{repository!r} is no repository of a Hub", hint="NAME or OWNER/NAME")


def fetch(
    source: HubRevision, file: HubFile, target: Path, *, advance: Callable[[float], None] = lambda size: None
) -> bool:
    """Write a file of a revision to ``target``, from the cache if it lies there sound, else from the Hub.

    :returns: whether it came from the cache.
    :raises BadInputError: when what was received is not what the Hub's checksum says; ``target`` is gone then.
    :raises NetworkError: when the connection fails, or breaks off again and again.
    """
    if _from_cache(source, file, target, advance):
        return True
    if is_offline():
        raise NetworkError(f"{source.repository}: {file.path} is not in the cache, and HF_HUB_OFFLINE is set")
    checksum = Checksum(file)
    with target.open("wb") as stream:
        for attempt in range(_ATTEMPTS):
            try:
                for block in _received(source, file, checksum.size_bytes):
                    stream.write(block)
                    checksum.update(block)
                    advance(len(block))
                    if checksum.size_bytes > file.size_bytes:
                        break
            except NetworkError:
                # A connection that broke off after some bytes goes on from there.
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 3**attempt)
            if checksum.size_bytes >= file.size_bytes:
                break
    if checksum.size_bytes < file.size_bytes:
        target.unlink()
        raise NetworkError(f"{source.repository}: {file.path} broke off at {checksum.size_bytes} of {file.size_bytes}")
    if not checksum.matches():
        target.unlink()
        raise BadInputError(
            f"{source.repository}: {file.path} was received corrupted: its checksum is not {file.checksum[:16]}…",
            hint="nothing was kept; try again, and if it stays so, the server or a proxy alters the file",
        )
    return False


def upload(
    repository: str, files: Mapping[str, Path], *, private: bool = True, message: str = "", verify: bool = True
) -> HubRevision:
    """Upload files (by their path in the repository) as one commit, and check what the Hub then says it holds.

    :raises BadInputError: when the Hub holds something else than was sent.
    :raises NetworkError: when the Hub refuses or cannot be reached.
    """
    check_repository(repository)
    if is_offline():
        raise NetworkError(f"{repository} cannot be sent: HF_HUB_OFFLINE is set", hint="unset it")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint())
    with told_plainly(repository), _without_bars():
        created = api.create_repo(repository, private=private, exist_ok=True)
        full_name = created.repo_id
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        commit = api.create_commit(full_name, operations, commit_message=message or "Upload with apt_model")
    held = revision(full_name, commit.oid)
    if verify:
        _verify_upload(held, files)
    return held


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep huggingface_hub's progress bars away: it draws them off a terminal too."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # their documented place
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    drawn = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            enable_progress_bars()


def _verify_upload(held: HubRevision, files: Mapping[str, Path]) -> None:
    by_path = {f.path: f for f in held.files}
    for name, path in files.items():
        file = by_path.get(name)
        if file is None or file.size_bytes != path.stat().st_size or not _is(file, path):
            raise BadInputError(f"{held.repository}: after the upload the Hub holds another {name} than was sent")


def _is(file: HubFile, path: Path) -> bool:
    checksum = Checksum(file)
    for block in _blocks(path):
        checksum.update(block)
    return checksum.matches()


def _from_cache(source: HubRevision, file: HubFile, target: Path, advance: Callable[[float], None]) -> bool:
    """Copy a file from the cache while checking it; a corrupted one is left to the Hub."""
    cached = hub_cache() / f"models--{source.repository.replace('/', '--')}" / "snapshots" / source.commit / file.path
    if not cached.is_file() or not cached.resolve().is_relative_to(hub_cache().resolve()):
        return False
    checksum = Checksum(file)
    with target.open("wb") as stream:
        for block in _blocks(cached):
            stream.write(block)
            checksum.update(block)
    if not checksum.matches():
        target.unlink()
        if is_offline():
            raise BadInputError(f"{cached} is corrupted: its checksum is not {file.checksum[:16]}…", hint="delete it")
        return False
    advance(file.size_bytes)
    return True


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _received(source: HubRevision, file: HubFile, offset: int) -> Iterator[bytes]:
    """Yield a file's bytes from ``offset`` on."""
    from urllib.parse import quote

    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # its documented place

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    url = f"{endpoint()}/{source.repository}/resolve/{source.commit}/{quote(file.path)}"
    with (
        told_plainly(source.repository),
        get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30.0) as response,
    ):
        hf_raise_for_status(response)
        if offset and response.status_code != 206:
            raise NetworkError(f"{source.repository}: the server cannot go on in the middle of {file.path}")
        # In the sizes that the network brings: bytes gathered into larger blocks are lost when it breaks off.
        yield from response.iter_raw()


@contextmanager
def told_plainly(repository: str) -> Iterator[None]:
    """Turn the Hub client's exceptions into one line.

    Its classes are told apart by name: they come from three packages, one of which changed with version 2.
    """
    try:
        yield
    except (AptError, GeneratorExit):
        raise
    except Exception as error:
        kinds = {c.__name__ for c in type(error).__mro__}
        text = first_line(error)
        if "GatedRepoError" in kinds:
            raise NetworkError(
                f"{repository} is gated: {endpoint()} asks for its terms to be accepted", hint="then: hf auth login"
            ) from error
        if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"}:
            what = "revision" if "RevisionNotFoundError" in kinds else "model"
            raise NotFoundError(
                f"{endpoint()} has no such {what} of {repository}, or does not show it to you",
                hint="check the name; for a private model: hf auth login",
            ) from error
        if kinds & {"HTTPError", "TransportError", "OfflineModeIsEnabled", "ConnectionError", "HfHubHTTPError"}:
            raise NetworkError(
                f"{repository}: {endpoint()}: {text}", hint="check HF_ENDPOINT and the network"
            ) from error
        if type(error) is RuntimeError and error.__cause__ is not None:  # what an upload thread wraps its fault in
            raise NetworkError(f"{repository}: {endpoint()}: {text} {error.__cause__}"[:400]) from error
        raise


def checked_paths(files: Iterable[HubFile]) -> list[HubFile]:
    """Return the files whose paths stay inside a directory.

    :raises BadInputError: for one that does not.
    """
    result = list(files)
    for file in result:
        parts = file.path.split("/")
        if any(p in ("", ".", "..") for p in parts) or any(c in file.path for c in "\\\0\n") or file.size_bytes < 0:
            raise BadInputError(f"the repository names a file {file.path!r}, which leaves the directory")
    return result
