"""Files of records: JSON lines and Parquet, read by ``datasets``, whole or as a stream.

Whole files are tokenized once into Arrow files in the cache and memory-mapped from there: memory stays small however
large they are. A stream holds one record at a time and nothing on disk.
"""

import glob
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from apt.checkpoint.reader import file_digest
from apt.console.errors import AptError, BadInputError, MissingDependencyError, NotFoundError, UsageError
from apt.evaluation.texts import DEFAULT_WINDOW
from apt.store import user_cache
from apt.training.components import needing
from apt.training.contract import Resources, RowSource, RowStream
from apt.training.data.encoding import Encoded, Encoder, chat_encoder, completion_encoder, text_encoder
from apt.training.data.isolation import check_isolation
from apt.training.data.layout import Layout, PackedRows, PaddedRows, StreamedRows, TooLong
from apt.training.sections import Section


class FileOptions(Section):
    """Options that all files of records have."""

    path: str | list[str] = Field(description="A file, a pattern (data/*.jsonl), or a list of them.")
    window: int | None = Field(
        default=None, ge=2, description="Tokens a row, at most; the model's context, at most 512, when absent."
    )
    layout: Layout = Field(
        default="padded",
        description="padded: a document a row. packed: documents behind one another, each attending to itself only.",
    )
    too_long: TooLong = Field(
        default="cut", description="Of documents longer than the window, when padded: cut, skip or refuse."
    )
    streaming: bool = Field(
        default=False, description="Read the records one after another, without a copy on disk; needs data.eval."
    )

    def check_installed(self) -> None:
        """Refuse to go on without datasets."""
        with _datasets():
            pass

    def contradictions(self, config: Any) -> Iterable[tuple[str, str]]:
        """Yield where rows are needed by number."""
        if self.streaming and config.data.eval is None:
            yield "streaming", "no rows can be set aside from a stream; give data.eval"
        if self.streaming and config.data.eval is self:
            yield "streaming", "rows to evaluate on are not streamed"


class RecordOptions(FileOptions):
    """Options of ``jsonl`` and ``parquet``: a text, or a prompt and its completion."""

    text: str | None = Field(default=None, min_length=1, description="The column of the text.")
    prompt: str | None = Field(
        default=None, min_length=1, description="The column of the prompt, which is not trained on."
    )
    completion: str | None = Field(default=None, min_length=1, description="The column of what follows the prompt.")
    append_eos: bool = Field(default=True, description="End every document with the tokenizer's end token.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.text is None) == (self.prompt is None and self.completion is None):
            raise ValueError("name a column of text, or columns of prompt and completion")
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion belong together")
        return self


class JsonlOptions(RecordOptions):
    """Options of ``jsonl``."""

    name: Literal["jsonl"] = Field(default="jsonl", description="The component.")


class ParquetOptions(RecordOptions):
    """Options of ``parquet``."""

    name: Literal["parquet"] = Field(default="parquet", description="The component.")


class ChatOptions(FileOptions):
    """Options of ``chat``: conversations by the tokenizer's chat template."""

    name: Literal["chat"] = Field(default="chat", description="The component.")
    messages: str = Field(default="messages", min_length=1, description="The column of the messages.")
    train_on: list[str] = Field(default=["assistant"], min_length=1, description="Roles whose turns are trained on.")


@needing("tokenizer")
def records(options: RecordOptions, resources: Resources) -> RowSource | RowStream:
    """Return the rows of JSON lines or Parquet files.

    :raises NotFoundError: when there is no such file; :raises BadInputError: for a record that is not right.
    """
    tokenizer = resources.tokenizer
    if options.text is not None:
        encode = text_encoder(tokenizer, options.text, append_eos=options.append_eos)
        used = {options.text}
    else:
        assert options.prompt is not None and options.completion is not None
        encode = completion_encoder(tokenizer, options.prompt, options.completion, append_eos=options.append_eos)
        used = {options.prompt, options.completion}
    return _rows(options, "parquet" if options.name == "parquet" else "json", encode, used, resources)


@needing("tokenizer")
def chat(options: ChatOptions, resources: Resources) -> RowSource | RowStream:
    """Return the rows of conversations.

    :raises NotFoundError: when there is no such file; :raises BadInputError: for a record that is not right.
    :raises UnsupportedError: for a chat template whose turns cannot be told apart.
    """
    encode = chat_encoder(resources.tokenizer, options.messages, options.train_on)
    kinds = {"parquet" if name.endswith(".parquet") else "json" for name in _files(options.path)}
    if len(kinds) > 1:
        raise UsageError("Parquet and JSON lines are read by parts of a mixture, not together")
    return _rows(options, kinds.pop(), encode, {options.messages}, resources)


def _rows(
    options: FileOptions, kind: str, encode: Encoder, used: set[str], resources: Resources
) -> RowSource | RowStream:
    files = _files(options.path)
    window = window_of(options.window, resources)
    if options.layout == "packed":
        for model in (resources.model, resources.teacher):
            if hasattr(model, "config"):
                check_isolation(model)
    checked = _Checked(encode, files, kind, resources.model)
    shape = options.model_dump(mode="json", exclude={"path", "window", "layout", "too_long", "streaming"})
    digest = _digest(files, shape, resources.tokenizer)
    if options.streaming:
        return StreamedRows(RecordStream(files, kind, checked, digest), window, options.layout, options.too_long)
    documents = EncodedFiles(files, kind, checked, used, digest)
    if options.layout == "packed":
        return PackedRows(documents, window)
    return PaddedRows(documents, window, options.too_long)


def window_of(wanted: int | None, resources: Resources) -> int:
    """Return the tokens of a row: those that are wanted, else the model's context, at most 512.

    :raises UsageError: when more are wanted than the model's context has.
    """
    models: list[Any] = [resources.model, resources.teacher]
    configs = [m.config.get_text_config() for m in models if hasattr(m, "config")]
    stated = [resources.context, *(getattr(config, "max_position_embeddings", None) for config in configs)]
    context = min((size for size in stated if isinstance(size, int)), default=None)
    if context is None:
        return wanted or DEFAULT_WINDOW
    if (wanted or 0) > context:
        raise UsageError(f"window: {wanted} tokens; the model's context has {context}", hint="lower window")
    return wanted or min(context, DEFAULT_WINDOW)


class EncodedFiles:
    """The records of files as documents, memory-mapped from the cache."""

    def __init__(self, files: Sequence[str], kind: str, encode: "_Checked", used: set[str], digest: str) -> None:
        self._digest = digest
        # What was checked against a larger vocabulary is to be checked again, and what other versions of the libraries
        # cut is to be cut anew.
        kept_as = hashlib.sha256(f"{digest} {encode.vocabulary} {_tokenized_by()}".encode()).hexdigest()
        with _datasets() as datasets, _told(files, kind):
            records = datasets.load_dataset(kind, data_files=list(files), split="train", cache_dir=_cache())
            known = [c for c in records.column_names if c not in used]

            def document(record: Mapping[str, Any], index: int) -> dict[str, Any]:
                found = encode(record, index)
                meta = {c: record[c] for c in known if isinstance(record[c], (str, int, float, bool))}
                return {"ids": found.ids, "labels": found.labels, "length": len(found.ids), "meta": json.dumps(meta)}

            self._table = records.map(
                document,
                with_indices=True,
                remove_columns=records.column_names,
                features=datasets.Features(
                    ids=datasets.List(datasets.Value("int32")), labels=datasets.List(datasets.Value("int32")),
                    length=datasets.Value("int64"), meta=datasets.Value("string"),
                ),
                new_fingerprint=kept_as[:32],
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Encoded:
        """Return one document."""
        found = self._table[index]
        return Encoded(found["ids"], found["labels"])

    def lengths(self) -> list[int]:
        """Return the tokens of each document."""
        return list(self._table["length"])

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return the plain values of the record that are not trained on."""
        found: dict[str, Any] = json.loads(self._table[index]["meta"])
        return found

    def digest(self) -> str:
        """Return a sha256 of the files, the options and the tokenizer."""
        return self._digest


class RecordStream:
    """The records of files as documents, one after another."""

    def __init__(
        self, files: Sequence[str], kind: str, encode: Callable[[Mapping[str, Any], int], Encoded], digest: str
    ) -> None:
        self._files, self._kind, self._encode = list(files), kind, encode
        self._digest = digest

    def after(self, documents: int) -> Iterator[Encoded]:
        """Yield the documents behind so many."""
        with _datasets() as datasets, _told(self._files, self._kind):
            found = datasets.load_dataset(self._kind, data_files=self._files, split="train", streaming=True)
            for number, record in enumerate(found.skip(documents)):
                yield self._encode(record, documents + number)

    def digest(self) -> str:
        """Return a sha256 of the files, the options and the tokenizer."""
        return self._digest


def fingerprint(tokenizer: Any) -> str:
    """Return a sha256 of all that a tokenizer does to a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(f"{rules}\n{special}\n{tokenizer.chat_template}".encode()).hexdigest()


def _tokenized_by() -> str:
    """The versions of what makes tokens of a text by a tokenizer's rules."""
    return " ".join(importlib.metadata.version(name) for name in ("tokenizers", "transformers"))


def _files(path: str | list[str]) -> list[str]:
    found: list[str] = []
    for pattern in [path] if isinstance(path, str) else path:
        matching = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207 absolute ones too
        for name in matching or [pattern]:
            if not Path(name).is_file():
                raise NotFoundError(f"no such file of training rows: {name}")
            if not Path(name).stat().st_size:
                raise BadInputError(f"{name}: holds no rows")
            found.append(name)
    if not found:
        raise UsageError("no file of training rows is named")
    return found


def _digest(files: Sequence[str], shape: Mapping[str, Any], tokenizer: Any) -> str:
    held = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    held.update(fingerprint(tokenizer).encode())
    for name in files:
        held.update(bytes.fromhex(file_digest(Path(name))))
    return held.hexdigest()


class _Checked:
    """Encodes records by number; tells what is wrong with one, and where it stands."""

    def __init__(self, encode: Encoder, files: Sequence[str], kind: str, model: Any) -> None:
        self._encode, self._files, self._kind = encode, files, kind
        self.vocabulary = None if model is None else int(model.get_input_embeddings().weight.shape[0])

    def __call__(self, record: Mapping[str, Any], index: int) -> Encoded:
        try:
            found = self._encode(record)
        except ValueError as error:
            raise BadInputError(f"{self._place(index)}: {error}") from None
        highest = max(found.ids, default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            raise BadInputError(
                f"{self._place(index)}: token id {highest}; the model's vocabulary ends at {self.vocabulary - 1}",
                hint="the tokenizer is another model's",
            )
        return found

    def _place(self, index: int) -> str:
        """File and line (JSON lines) or row (Parquet) of a record."""
        for name in self._files:
            if self._kind == "parquet":
                from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

                with ParquetFile(name) as table:
                    records = table.metadata.num_rows
                if index < records:
                    return f"{name}: row {index + 1}"
                index -= records
            else:
                with Path(name).open("rb") as stream:
                    for number, line in enumerate(stream, 1):
                        if line.strip():
                            if not index:
                                return f"{name}:{number}"
                            index -= 1
        return self._files[-1]


@contextmanager
def _told(files: Sequence[str], kind: str) -> Iterator[None]:
    """Tell a fault of the files in one line; ``datasets`` tells it in many."""
    try:
        yield
    except AptError:
        raise
    except Exception as error:  # whatever its readers raise: pyarrow's own, and its own around them
        inner: BaseException = error
        while inner.__cause__ is not None:
            inner = inner.__cause__
        if isinstance(inner, AptError):
            raise inner from None
        place = _bad_line(files) if kind == "json" else ""
        raise BadInputError(place or f"{files[0]}: not a readable {kind} file: {_first_line(inner)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _bad_line(files: Sequence[str]) -> str:
    """The first line that is no JSON object, in words; empty when every line is one."""
    for name in files:
        with Path(name).open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    is_object = not line.strip() or isinstance(json.loads(line), dict)
                except ValueError:
                    is_object = False
                if not is_object:
                    return f"{name}:{number}: not a JSON object"
    return ""


@contextmanager
def _datasets() -> Iterator[Any]:
    """The library, without its bars and log lines: what it would say of a file, :func:`_told` says in one line.

    :raises MissingDependencyError: when it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError(
            "reading files of training rows needs datasets", hint='pip install "datasets>=4.0"'
        ) from None
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    shown, level = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield datasets
    finally:
        logging.set_verbosity(level)
        if shown:
            enable_progress_bars()


def _cache() -> str:
    """Where tokenized files are kept: below the user's cache, beside the index of plugins."""
    return str(user_cache() / "apt_model" / "rows")
