"""What a backup version consists of: its files, each a list of pieces by SHA-256.

On disk a manifest is one line with a checksum of the rest, then zlib-compressed JSON. Digests hardly compress, so a
manifest takes about 40 bytes a piece: 12 KiB for a model of 300 tensors.
"""

import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from apt.console.errors import BadInputError, UsageError

_MAGIC: Final = b"apt-backup 1 "
#: No manifest of a real model comes near; a longer one is a compression bomb.
_MAX_JSON_BYTES: Final = 256 * 2**20
#: No piece is larger (see :mod:`.pieces`), but a later version may cut larger ones.
_MAX_PIECE_BYTES: Final = 64 * 2**20
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[\w-][\w.+-]{0,127}")
#: Names that are devices on Windows, where a store may be mounted.
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PieceRef:
    """A stored piece."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a version: ``path`` is relative, with ``/``."""

    path: str
    size_bytes: int
    sha256: str
    pieces: tuple[PieceRef, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version.

    ``new_*`` and ``tensors_stored`` compare with all versions that the store held before this one; they are part of
    the record, so that asking again gives the same answer.
    """

    source: str
    created: str
    tag: str
    files: tuple[FileEntry, ...]
    tensors_total: int
    tensors_stored: int
    new_object_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(f.size_bytes for f in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the files' names and contents: equal for equal directories."""
        total = hashlib.sha256()
        for file in sorted(self.files, key=lambda f: f.path):
            total.update(f"{file.path}\0{file.size_bytes}\0{file.sha256}\n".encode())
        return total.hexdigest()

    def encode(self) -> bytes:
        """Return the manifest's bytes."""
        files = [
            {
                "path": f.path,
                "size": f.size_bytes,
                "sha256": f.sha256,
                "pieces": "".join(p.digest for p in f.pieces),
                "sizes": [p.size_bytes for p in f.pieces],
            }
            for f in self.files
        ]
        value = {
            "source": self.source,
            "created": self.created,
            "tag": self.tag,
            "tensors_total": self.tensors_total,
            "tensors_stored": self.tensors_stored,
            "new_object_bytes": self.new_object_bytes,
            "files": files,
        }
        body = zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), 9)
        return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def decode(cls, raw: bytes, *, where: str) -> "Manifest":
        """Read a manifest, checking everything that it says.

        :raises BadInputError: when it is damaged, or hostile: a name that leaves the directory, two files of one
            name, sizes that do not add up.
        """
        head, _, body = raw.partition(b"\n")
        if not head.startswith(_MAGIC):
            raise BadInputError(f"{where}: not a manifest of this version of apt_model")
        if hashlib.sha256(body).hexdigest().encode() != head[len(_MAGIC) :]:
            raise BadInputError(f"{where}: the manifest is damaged (its checksum does not match)")
        try:
            inflate = zlib.decompressobj()
            text = inflate.decompress(body, _MAX_JSON_BYTES)
            if not inflate.eof:
                raise ValueError("too large or cut short")
            return cls._from_json(json.loads(text))
        except (zlib.error, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
            raise BadInputError(f"{where}: the manifest is malformed: {error}") from None

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> "Manifest":
        files = tuple(_file_entry(entry) for entry in value["files"])
        check_paths(f.path for f in files)
        return cls(
            source=_text(value["source"]),
            created=_text(value["created"]),
            tag=_text(value["tag"]),
            files=files,
            tensors_total=_size(value["tensors_total"]),
            tensors_stored=_size(value["tensors_stored"]),
            new_object_bytes=_size(value["new_object_bytes"]),
        )


def check_name(name: str) -> str:
    """Return the name of a backup or a tag if it can be one.

    :raises UsageError: otherwise.
    """
    if not _NAME.fullmatch(name) or name.endswith(".") or _DEVICES.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a backup", hint="letters, digits, and . _ + - inside; give another one with --name"
        )
    return name


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths that do not stay inside the directory that they are restored to, or that fall on one another.

    Two names that differ only in case or Unicode form are one file on some systems.

    :raises ValueError: naming the path.
    """
    seen: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        if not path or path.startswith("/") or any(p in ("", ".", "..") for p in parts):
            raise ValueError(f"the path {path!r} leaves the directory")
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in path) or "\\" in path or re.match(r"[A-Za-z]:", path):
            raise ValueError(f"the path {path!r} is not portable")
        if any(_DEVICES.fullmatch(p) or len(p.encode()) > 255 for p in parts):
            raise ValueError(f"the path {path!r} is not portable")
        for end in range(1, len(parts) + 1):
            prefix = "/".join(parts[:end])
            folded = unicodedata.normalize("NFC", prefix).casefold()
            whole = end == len(parts)
            # A file's own name may not be taken; a directory's may, by directories spelt the same.
            if folded in seen and (whole or seen[folded] != prefix + "/"):
                raise ValueError(f"the path {path!r} collides with another")
            seen[folded] = prefix if whole else prefix + "/"


def _file_entry(entry: dict[str, Any]) -> FileEntry:
    digests, sizes = _text(entry["pieces"]), [_size(n) for n in entry["sizes"]]
    pieces = tuple(PieceRef(_digest(digests[64 * i : 64 * i + 64]), n) for i, n in enumerate(sizes))
    path, size = _text(entry["path"]), _size(entry["size"])
    if len(digests) != 64 * len(sizes) or sum(sizes) != size or any(not 0 < n <= _MAX_PIECE_BYTES for n in sizes):
        raise ValueError(f"the pieces of {path!r} do not add up")
    return FileEntry(path, size, _digest(entry["sha256"]), pieces)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a text")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError("expected a size")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("expected a sha256")
    return value
