"""Where a model comes from: a directory, the Hugging Face cache, or a Hub.

``DIR`` (whatever exists or looks like a path), ``hf:owner/name[@revision]``, a name in the store, or ``tiny``.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from apt.checkpoint import hub
from apt.checkpoint.atomic import recover
from apt.checkpoint.reader import member
from apt.console import output
from apt.console.errors import NetworkError, NotFoundError, UsageError
from apt.store import EMBEDDED, model_path, resolve


class Origin(Protocol):
    """Files by name, to be brought one by one; only those directly in the model's directory are seen."""

    #: What is imported, for messages and the lineage: a path, or ``owner/name``.
    label: str
    #: The commit, for what comes from a Hub or its cache; else empty.
    commit: str
    #: What the model is called when nobody says otherwise.
    name: str
    #: The directory that is read, when it is the user's own and not a cache.
    directory: Path | None

    def sizes(self) -> dict[str, int]:
        """Return the size of each file by name."""
        ...

    def bring(self, name: str, target: Path, advance: Callable[[float], None]) -> None:
        """Write a file to ``target``, checked as far as the origin can check it."""
        ...

    def checksums(self) -> dict[str, str]:
        """Return the checksum by which each file was checked; empty for an origin that knows none."""
        ...


class DirectoryOrigin:
    """A model in a directory."""

    def __init__(self, directory: Path) -> None:
        recover(directory)
        if not directory.is_dir():
            raise NotFoundError(f"{directory} is not a directory", hint="give the directory that holds config.json")
        self._directory = directory
        self.directory: Path | None = directory
        self.label = str(directory)
        self.commit = ""
        self.name = directory.resolve().name

    def sizes(self) -> dict[str, int]:
        """Return the size of each file by name."""
        return {p.name: p.stat().st_size for p in sorted(self._directory.iterdir()) if p.is_file()}

    def bring(self, name: str, target: Path, advance: Callable[[float], None]) -> None:
        """Copy a file.

        :raises BadInputError: when it is a link that leads outside the directory.
        """
        source = member(self._directory, name)
        shutil.copyfile(source, target)
        advance(target.stat().st_size)

    def checksums(self) -> dict[str, str]:
        """Return nothing: a directory knows no checksums."""
        return {}


class HubOrigin:
    """A revision of a repository, from the cache where it lies there sound, else from the Hub."""

    def __init__(self, revision: hub.HubRevision) -> None:
        self.directory: Path | None = None
        self._revision = revision
        self._files = {f.path: f for f in revision.files if "/" not in f.path}
        self.label = revision.repository
        self.commit = revision.commit
        self.name = revision.repository.rpartition("/")[2]

    def sizes(self) -> dict[str, int]:
        """Return the size of each file by name."""
        return {name: f.size_bytes for name, f in self._files.items()}

    def bring(self, name: str, target: Path, advance: Callable[[float], None]) -> None:
        """Copy or download a file, hashing it meanwhile.

        :raises BadInputError: when it is not what its checksum says.
        """
        hub.fetch(self._revision, self._files[name], target, advance=advance)

    def checksums(self) -> dict[str, str]:
        """Return the checksum of each file: SHA-256 of large ones, git's hash of small ones."""
        return {name: f.checksum for name, f in self._files.items()}


def locate(ref: str, revision: str = "") -> Origin:
    """Find a model.

    :raises NotFoundError: when it is nowhere.
    :raises NetworkError: when it is not in the cache and the Hub cannot be reached.
    """
    if ref.startswith("hf:"):
        repository, _, inline = ref.removeprefix("hf:").partition("@")
        if inline and revision and inline != revision:
            raise UsageError(f"two revisions were asked for: {inline} and {revision}")
        return HubOrigin(_revision(repository, revision or inline or "main"))
    if revision:
        raise UsageError(f"{ref} has no revisions", hint="a revision belongs to a model of a Hub: hf:owner/name")
    return DirectoryOrigin(resolve(ref))


def as_hub_name(word: str) -> str:
    """Return what a word on the command line of ``huggingface import`` means: there a bare name is a Hub id.

    ``./dir``, ``~/dir``, an existing path with a separator, ``hf:…`` and ``tiny`` mean what they mean everywhere;
    ``gpt2`` and ``owner/name`` are models of the Hub.
    """
    if word.startswith(("hf:", "./", "../", "/", "~")) or word in (EMBEDDED, ".", ".."):
        return word
    if ("/" in word or "\\" in word) and Path(word).exists():
        return word
    if not hub.REPOSITORY.fullmatch(word.partition("@")[0]):
        return word
    if Path(word).is_dir():
        output.note(f"{word} is taken as a model of the Hub; for the directory write ./{word}")
    return f"hf:{word}"


def _revision(repository: str, name: str) -> hub.HubRevision:
    """Ask the Hub; where it cannot be asked, take what the cache holds under that name."""
    try:
        return hub.revision(repository, name)
    except NetworkError:
        cached = hub.cached_revision(repository, name)
        if cached is None:
            raise
        if not hub.is_offline():
            output.warn(f"{hub.endpoint()} cannot be reached: {repository} is taken from the cache")
        return cached


def default_output(ref: str, name: str = "") -> Path:
    """Return where a model goes when no output is named: into the store, under ``name`` or its own name.

    :raises UsageError: when it has no name that the store can use.
    """
    if not name and ref.startswith("hf:"):
        name = ref.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
    if not name and ref == EMBEDDED:
        raise UsageError(f"{EMBEDDED} is shipped with the package", hint="name the copy: --name NAME or -o DIR")
    return model_path(name or Path(resolve(ref)).resolve().name)
