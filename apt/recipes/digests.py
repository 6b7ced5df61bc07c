"""Digests of what a step reads and writes: by content, remembered by stat so that nothing is read twice."""

import hashlib
import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from apt.checkpoint.reader import LINEAGE_NAME, Checkpoint, file_digest
from apt.console.errors import AptError, NotFoundError
from apt.store import embedded_path, resolve


class Digests:
    """SHA-256 of files and trees; ``memory`` is the file that remembers digests between runs.

    A file whose size, modification time and inode are those of last time is taken to be the same.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        with suppress(OSError, ValueError, AttributeError):
            loaded = json.loads(memory.read_text(encoding="utf-8"))
            self._known = {k: v for k, v in loaded.items() if isinstance(v, list) and len(v) == 2}

    def save(self) -> None:
        """Write the memory, if anything was added. It may be lost, so nothing waits for the disk."""
        if self._changed:
            kept = {k: v for k, v in self._known.items() if Path(k).exists()}
            aside = self._memory.with_suffix(".new")
            aside.write_text(json.dumps(kept), encoding="utf-8")
            aside.replace(self._memory)
            self._changed = False

    def file(self, path: Path) -> str:
        """Return the digest of a file's bytes.

        :raises NotFoundError: when there is none.
        """
        name = str(path.resolve())
        try:
            stat = signature(path)
        except FileNotFoundError:
            raise NotFoundError(f"no such file: {path}") from None
        known = self._known.get(name)
        if known is not None and known[0] == stat:
            return str(known[1])
        digest = file_digest(path)
        self._known[name] = [stat, digest]
        self._changed = True
        return digest

    def tree(self, path: Path) -> str:
        """Return the digest of a file, or of every file below a directory with its name.

        :raises NotFoundError: when there is neither.
        """
        if path.is_file():
            return self.file(path)
        if not path.is_dir():
            raise NotFoundError(f"no such file or directory: {path}")
        return self._together((str(p.relative_to(path)), p) for p in tree_files(path))

    def model(self, ref: str) -> str:
        """Return the digest of a model: of its files, without the lineage, which tells when it was made.

        A model of the Hub that is not in the cache yet counts by its name: what it holds is not known here.

        :raises NotFoundError: when there is no such model.
        """
        try:
            path = resolve(ref)
        except NotFoundError:
            if ref.startswith("hf:"):
                return ref
            raise
        if path.is_file() and path.suffix != ".safetensors":
            return self.file(path)
        try:
            checkpoint = Checkpoint.open(path)
        except AptError:  # pickled weights, say: whether that is good enough is for the operation to say
            return self.tree(path)
        return self._together((p.name, p) for p in checkpoint.files() if p.name != LINEAGE_NAME)

    def text(self, ref: str) -> str:
        """Return the digest of a text: of the file, or of what ``embedded`` stands for here.

        :raises NotFoundError: when it is a file that is not there.
        """
        if ref == "embedded":
            heldout = embedded_path() / "heldout.txt"
            return f"embedded:{self.file(heldout)}:{platform.python_version()}"
        if ref == "self":
            return ref
        return self.file(Path(ref).expanduser())

    def input(self, what: str, ref: str) -> str:
        """Return the digest of a marked input; ``what`` is the mark's kind."""
        if what == "model":
            return self.model(ref)
        if what == "config" and not Path(ref).expanduser().exists():  # a shipped one, which the version tells of
            return ref
        return self.text(ref) if what == "text" else self.tree(Path(ref).expanduser())

    def _together(self, files: Any) -> str:
        total = hashlib.sha256()
        for name, path in files:
            total.update(f"{name}\0{self.file(path)}\n".encode())
        return total.hexdigest()


def tree_files(path: Path) -> list[Path]:
    """Return the files below a directory, sorted; the file itself when it is one."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def signature(path: Path) -> list[int]:
    """Return what changes when a file does: size, modification time, inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
