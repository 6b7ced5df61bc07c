"""The operation ``verify-gguf``: prove a GGUF against its checkpoint, by values and in llama.cpp."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, MissingDependencyError, NotFoundError
from apt.plugins.builtin.ollama.llama_cpp import PACKAGE, LlamaCpp, installed_version
from apt.plugins.builtin.ollama.mapping import check_config, plan_tensors
from apt.plugins.builtin.ollama.options import VerifyOptions
from apt.plugins.builtin.ollama.results import PredictionCheck, TensorCheck, VerifyResult
from apt.plugins.builtin.ollama.verify_tensors import check_file

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows

_T = TypeVar("_T")

#: Window of the compared rows, in tokens: long enough to see positions, short enough for some rows.
WINDOW: Final = 256
#: So many times more tokens decide where the first figures miss a limit that their intervals reach.
MORE_TOKENS: Final = 4
#: Rows whose text is tokenized again in llama.cpp.
_RETOKENIZED_ROWS: Final = 16
#: ``general.file_type`` → type.
_FILE_TYPES: Final = {0: "f32", 1: "f16", 7: "q8_0", 32: "bf16"}
#: With the others llama.cpp rounds activations so coarsely that only predictions as a whole can be compared.
_GREEDY_TYPES: Final = frozenset({"f32", "f16"})


def verify_gguf(options: VerifyOptions) -> VerifyResult:
    """Check every tensor and metadata value, and where ``xllamacpp`` is installed the behaviour in llama.cpp.

    :raises CheckFailedError: with the figures, when a check is not passed.
    :raises MissingDependencyError: when llama.cpp is required and not installed.
    """
    path = find_gguf(options.gguf)
    checkpoint = Checkpoint.open(options.model)
    gguf = GGUFFile.open(path)
    clock = _Clock()
    tensors = clock.timed("tensors", lambda: check_file(checkpoint, gguf))
    version = installed_version()
    if options.llama_cpp == "require" and version is None:
        raise MissingDependencyError("running the GGUF needs llama.cpp", hint=f"pip install {PACKAGE}")
    if options.llama_cpp == "skip" or version is None:
        state = "skipped" if options.llama_cpp == "skip" else "not installed"
        return _result(checkpoint, gguf, tensors, clock, llama_cpp=state)
    return _run(options, checkpoint, gguf, tensors, clock, version)


def find_gguf(path: Path) -> Path:
    """Return the GGUF that ``path`` is, or that lies in it as the only one.

    :raises NotFoundError: when there is none; :raises BadInputError: when there are several.
    """
    if not path.is_dir():
        if not path.exists():
            raise NotFoundError(f"no such GGUF file: {path}")
        return path
    found = sorted(path.glob("*.gguf"))
    if not found:
        raise NotFoundError(f"no GGUF file in {path}")
    if len(found) > 1:
        raise BadInputError(f"{path} holds {len(found)} GGUF files", hint=f"name one of them, {found[0].name!r} say")
    return found[0]


def _run(
    options: VerifyOptions,
    checkpoint: Checkpoint,
    gguf: GGUFFile,
    tensors: TensorCheck,
    clock: "_Clock",
    version: str,
) -> VerifyResult:
    import torch

    from apt.plugins.builtin.ollama.verify_llama import check_greedy, check_tokens
    from apt.plugins.builtin.ollama.verify_speed import measure_decode

    sizes = check_config(checkpoint)
    kind = _type_of(gguf)
    model = clock.timed("load", lambda: checkpoint.load(dtype=torch.float32))
    rows = clock.timed("text", lambda: _rows(options, checkpoint, model, options.tokens))
    greedy = None
    with LlamaCpp(gguf.path) as runner:
        tokenizer: Any = checkpoint.tokenizer()
        texts = [tokenizer.decode(ids[1:]) for ids in rows.ids[:_RETOKENIZED_ROWS].tolist()]
        count = clock.timed("tokens", lambda: check_tokens(checkpoint, runner, texts))
        predictions = clock.timed("predictions", lambda: _predictions(options, checkpoint, gguf, model, runner, rows))
        if kind in _GREEDY_TYPES:
            plan = {tensor.name: tensor for tensor in plan_tensors(checkpoint, sizes)}
            greedy = clock.timed("greedy", lambda: check_greedy(model, gguf, runner, rows, plan, sizes.context))
        decode = clock.timed("speed", lambda: measure_decode(runner, int(rows.ids[0, 0]), sizes.context))
    return _result(
        checkpoint,
        gguf,
        tensors,
        clock,
        llama_cpp="run",
        llama_cpp_version=f"{PACKAGE} {version}",
        tokenizer_texts=count,
        greedy=greedy,
        predictions=predictions,
        decode=decode,
    )


def _predictions(
    options: VerifyOptions, checkpoint: Checkpoint, gguf: GGUFFile, model: Any, runner: LlamaCpp, rows: "Rows"
) -> PredictionCheck:
    """Measure and judge the predictions; a miss that may be chance is judged on more text."""
    from apt.plugins.builtin.ollama.verify_llama import is_doubtful, judge, measure_predictions

    figures = measure_predictions(model, runner, rows)
    if is_doubtful(figures):
        more = _rows(options, checkpoint, model, options.tokens * MORE_TOKENS, at_least=options.tokens)
        if more.tokens > rows.tokens:
            figures = measure_predictions(model, runner, more)
    judge(gguf.path, figures)
    return figures


def _rows(
    options: VerifyOptions, checkpoint: Checkpoint, model: Any, tokens: int, at_least: int | None = None
) -> "Rows":
    """Return held-out rows with ``tokens`` counted tokens, or at least ``at_least`` where the text is shorter."""
    from apt.evaluation.texts import context_of, load_rows

    window = min(context_of(checkpoint), WINDOW)
    needed = -(-tokens // (window - 1))
    ref = options.text or "self"
    if ref == "self":
        rows = load_rows(ref, split="heldout", checkpoint=checkpoint, window=window, max_rows=needed, model=model)
    else:
        every = load_rows(ref, split="heldout", checkpoint=checkpoint, window=window)
        rows = every.spread(needed)
        while rows.tokens < tokens and len(rows) < len(every):
            needed *= 2
            rows = every.spread(needed)
    least = tokens if at_least is None else at_least
    if rows.tokens < least:
        raise BadInputError(
            f"the text {rows.source!r} has {rows.tokens} tokens, {least} are needed",
            hint="give a longer text or ask for fewer tokens",
        )
    return rows


def _type_of(gguf: GGUFFile) -> str:
    number = gguf.metadata.get("general.file_type")
    if number not in _FILE_TYPES:
        raise BadInputError(f"{gguf.path}: general.file_type {number!r} is none that verify knows")
    return _FILE_TYPES[number]


def _result(
    checkpoint: Checkpoint, gguf: GGUFFile, tensors: TensorCheck, clock: "_Clock", **figures: Any
) -> VerifyResult:
    return VerifyResult(
        path=gguf.path,
        model=checkpoint.path,
        type=_type_of(gguf),
        size_bytes=gguf.size_bytes,
        tensors=tensors,
        seconds=dict(clock.seconds),
        **figures,
    )


class _Clock:
    """Wall-clock seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, work: Callable[[], _T]) -> _T:
        begun = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[part] = round(time.monotonic() - begun, 3)
