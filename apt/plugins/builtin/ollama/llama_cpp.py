"""Run a GGUF in llama.cpp (the ``xllamacpp`` wheel), in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from apt.console.errors import AptError, CheckFailedError, MissingDependencyError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE: Final = "xllamacpp"
#: A request that takes longer than this is taken for a hang.
TIMEOUT_SECONDS: Final = 600.0
_SMALL_BYTES: Final = 128 << 20
_CHILD: Final = Path(__file__).with_name("llama_cpp_child.py")


def installed_version() -> str | None:
    """Return the version of the installed wheel, ``None`` without one. Imports nothing of it."""
    try:
        return metadata.version(PACKAGE) if _library() else None
    except metadata.PackageNotFoundError:
        return None


def _library() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    return next((p for suffix in (".so", ".dylib", ".pyd") for p in sorted(folder.glob(f"{PACKAGE}*{suffix}"))), None)


def _threads_for(path: Path) -> int:
    """One thread for a small model, whose threads would wait more than work; else all cores of this process."""
    if path.stat().st_size < _SMALL_BYTES:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class LlamaCpp:
    """A GGUF loaded in llama.cpp; a context manager.

    The KV cache is f32 and attention plain, so that what differs from transformers is the file and not the settings.

    :raises MissingDependencyError: when ``xllamacpp`` is not installed.
    :raises UnsupportedError: when the installed version is laid out otherwise than this one knows.
    :raises CheckFailedError: when llama.cpp cannot load or run the file.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        library = _library()
        if library is None:
            raise MissingDependencyError("running a GGUF needs llama.cpp", hint=f"pip install {PACKAGE}")
        self._path = path
        #: Threads that llama.cpp computes with.
        self.threads = threads or _threads_for(path)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, see close()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), str(library), str(path.resolve()), str(self.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Threads that spin while they wait bring a machine with other work to a halt.
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
        )
        try:
            self.vocab_size = int(self._answer()["vocab_size"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids, special tokens added and recognised in the text."""
        ids: list[list[int]] = self._ask(op="tokenize", texts=list(texts))["ids"]
        return ids

    def greedy(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Continue prompts, all of one length, by ``new_tokens`` greedy tokens each."""
        ids: list[list[int]] = self._ask(op="greedy", prompts=[list(p) for p in prompts], new_tokens=new_tokens)["ids"]
        self._check_settings()
        return ids

    def logits(self, ids: Sequence[int]) -> "Iterator[NDArray[np.float32]]":
        """Yield the logits after each token of one sequence in chunks, f32 ``[tokens of the chunk, vocabulary]``."""
        import numpy as np

        self._send(op="logits", ids=list(ids))
        left = len(ids)
        while left:
            count = int(self._answer()["tokens"])
            raw = self._read(count * self.vocab_size * 4)
            yield np.frombuffer(raw, np.float32).reshape(count, self.vocab_size)
            left -= count
        self._check_settings()

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._send(**request)
        return self._answer()

    def _send(self, **request: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed() from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with self._deadline():
            line = self._process.stdout.readline()
        try:
            value: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._crashed() from None
        if "error" in value:
            raise self._failure(value)
        return value

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        with self._deadline():
            raw = self._process.stdout.read(size)
        if len(raw) != size:
            raise self._crashed()
        return raw

    def _deadline(self) -> "_Deadline":
        return _Deadline(self._process)

    def _failure(self, value: dict[str, Any]) -> AptError:
        if value.get("kind") == "layout":
            return UnsupportedError(
                f"{PACKAGE} {installed_version()} is not a version that can be driven: {value['error']}",
                hint="install the version in constraints.txt, or verify without llama.cpp",
            )
        return CheckFailedError(f"{self._path}: {value['error']}", hint=self._last_words())

    def _crashed(self) -> CheckFailedError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        return CheckFailedError(f"{self._path}: llama.cpp ended with status {code}", hint=self._last_words())

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log_text().splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
        return (telling or lines or ["it said nothing"])[0][:300]

    def _log_text(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _check_settings(self) -> None:
        """Refuse figures that were computed with other settings than were asked for.

        llama.cpp offers no getter for these, but it logs them.
        """
        log = self._log_text()
        if "K (f16)" in log or "V (f16)" in log or "flash_attn    = enabled" in log:
            raise UnsupportedError(
                f"{PACKAGE} {installed_version()} did not take the settings of the KV cache",
                hint="install the version in constraints.txt, or verify without llama.cpp",
            )


class _Deadline:
    """Kills a process that does not answer in time; its pipes then end."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._timer = threading.Timer(TIMEOUT_SECONDS, process.kill)

    def __enter__(self) -> None:
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
