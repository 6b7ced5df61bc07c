"""What a layer-by-layer pruning has done so far, so that the same command goes on after a kill.

A hidden directory beside the output holds the weight files, in which the layers that are done stand already, the
residual streams after the last of them, and a journal that seals both by their digests and is written last. A kill at
any moment leaves the journal of the layer before, whose files are all still there.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from apt.checkpoint.atomic import atomic_file
from apt.checkpoint.lock import LOCK_NAME, locked
from apt.checkpoint.reader import file_digest
from apt.console import output
from apt.console.errors import WRITE_REFUSALS, CannotWriteError, system_error
from apt.console.units import format_bytes
from apt.plugins.optional.pruning.streaming.shards import Shards
from apt.plugins.optional.pruning.streaming.streams import Streams

_JOURNAL: Final = "journal.json"
_FORMAT: Final = 1


def work_directory_of(target: Path) -> Path:
    """Return where the work on an output is kept: hidden, beside it."""
    target = target.absolute()
    return target.with_name(f".{target.name}.prune")


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the digest of everything that decides the result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass
class _Done:
    """A layer that stands in the weight files."""

    layer: int
    names: list[str]
    sha256: str
    told: dict[str, Any]


@dataclass
class WorkDirectory:
    """The state of one pruning; made by :func:`opened`.

    :param done: layers that are finished, in order.
    """

    path: Path
    key: str
    shards: Shards
    done: list[_Done] = field(default_factory=list)
    streams: dict[str, str] = field(default_factory=dict)

    @property
    def told(self) -> list[tuple[int, dict[str, Any]]]:
        """(layer, what was told of it) for each finished layer."""
        return [(done.layer, done.told) for done in self.done]

    def finish(
        self, layer: int, tensors: Mapping[str, Tensor], told: Mapping[str, Any], streams: Sequence[Streams]
    ) -> None:
        """Seal a layer: its tensors and the streams after it are on the disk before the journal says so.

        :param streams: under names that no earlier layer used.
        """
        self.shards.write(tensors)
        for some in streams:
            some.save()
        self.done.append(_Done(layer, list(tensors), self.shards.digest(tensors), dict(told)))
        before = set(self.streams)
        self.streams = {some.path.name: file_digest(some.path) for some in streams}
        self._write()
        for name in before - set(self.streams):
            (self.path / name).unlink(missing_ok=True)

    def _write(self) -> None:
        value = {
            "format": _FORMAT,
            "key": self.key,
            "done": [vars(done) for done in self.done],
            "streams": self.streams,
        }
        with atomic_file(self.path / _JOURNAL, overwrite=True) as stream:
            stream.write(json.dumps(value).encode())

    def resume(self) -> None:
        """Take up what the journal seals; whatever does not hold is cleared away, and the work begins anew."""
        journal = self.path / _JOURNAL
        if not journal.exists():
            self._clear()
            return
        fault = self._fault(journal)
        if fault:
            output.note(f"{self.path}: {fault}; starting anew")
            self.done, self.streams = [], {}
            self._clear()
            return
        if self.done:
            output.note(f"{self.path}: going on after {len(self.done)} finished layers")
        self._clear({_JOURNAL, *self.streams, *(path.name for path in self.shards.paths)})

    def _fault(self, journal: Path) -> str:
        """Take the journal's word, and say what of it does not hold."""
        try:
            value = json.loads(journal.read_bytes())
            if value["format"] != _FORMAT:
                return "of another version"
            if value["key"] != self.key:
                return "holds the work on another model, text or set of options"
            self.done = [_Done(**done) for done in value["done"]]
            self.streams = {str(name): str(digest) for name, digest in value["streams"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "the journal is damaged"
        if not self.shards.are_there():
            return "a weight file is damaged"
        for done in self.done:
            with suppress(KeyError):
                if self.shards.digest(done.names) == done.sha256:
                    continue
            return f"the weights of layer {done.layer} are damaged"
        for name, digest in self.streams.items():
            path = self.path / Path(name).name
            if not path.is_file() or file_digest(path) != digest:
                return f"{name} is damaged"
        return ""

    def start(self) -> None:
        """Make the weight files and an empty journal, unless there is work to go on with."""
        if self.done or (self.path / _JOURNAL).exists():
            return
        self.shards.create()
        self._write()

    def _clear(self, but: Collection[str] = ()) -> None:
        for path in self.path.iterdir():
            if path.name != LOCK_NAME and path.name not in but:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self) -> None:
        """Take the directory away; the lock in it ends with the process that holds it."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def opened(target: Path, key: str, shards_in: Callable[[Path], Shards]) -> Iterator[WorkDirectory]:
    """Hold the work directory of an output, alone.

    :param shards_in: (directory) → :class:`~.shards.Shards`.
    :raises UsageError: when another process is at work there.
    :raises CannotWriteError: when the disk is full; what is finished stays, and the same command goes on with it.
    """
    path = work_directory_of(target)
    busy = f"another pruning is at work on {target}"
    with _told_when_full(path), locked(path, busy=busy, hint="wait for it, or choose another output"):
        work = WorkDirectory(path, key, shards_in(path))
        work.resume()
        try:
            yield work
        except BaseException:
            if not work.done:  # nothing to go on with
                work.remove()
            raise


def check_room(work: WorkDirectory, further_bytes: int) -> None:
    """Say how much the disk is to hold, and refuse when it cannot.

    :param further_bytes: of streams, beside the weight files.
    :raises CannotWriteError: naming what is needed and what is free.
    """
    need = further_bytes + (0 if work.done else work.shards.size_bytes)
    free = shutil.disk_usage(work.path).free
    if need > free:
        raise CannotWriteError(
            f"{work.path.parent} has {format_bytes(free)} free, the work takes {format_bytes(need)}",
            hint="free space or choose an output elsewhere",
        )
    output.note(f"working in {work.path}: up to {format_bytes(work.shards.size_bytes + further_bytes)} of disk")


@contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refusal = system_error(error)
        if refusal is None or refusal.errno not in WRITE_REFUSALS:
            raise
        raise CannotWriteError(
            f"cannot write {path}: {refusal.strerror}",
            hint="free space and give the command again: it goes on after the last finished layer",
        ) from error
