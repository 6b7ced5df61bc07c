"""Plain text and token rows, held in memory: what pruning, distillation and measuring read too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from apt.console.errors import UsageError
from apt.evaluation.texts import cut_documents, load_rows, read_documents
from apt.training.components import needing
from apt.training.contract import Resources
from apt.training.data.files import window_of
from apt.training.data.rows import TokenRows
from apt.training.sections import Section

#: The text that the teacher writes; the other names are those of :func:`apt.evaluation.texts.load_rows`.
_OF_TEACHER: Final = "teacher"


class TextOptions(Section):
    """Options of ``text``."""

    name: Literal["text"] = Field(default="text", description="The component.")
    path: str | list[str] = Field(
        min_length=1,
        description="embedded, self (sampled from the model), teacher (sampled from the teacher), a .txt, .jsonl (key "
        '"text") or .npz file, or a list of .txt and .jsonl files.',
    )
    split: Literal["train", "calibration", "heldout"] = Field(
        default="train", description="Of embedded, self, teacher and .npz; the other files are used whole."
    )
    window: int | None = Field(
        default=None, ge=2, description="Tokens a row; the model's context, at most 512, when absent."
    )
    max_rows: int | None = Field(default=None, ge=1, description="At most so many rows, spread over the text.")

    def further_needs(self) -> frozenset[str]:
        """Return the teacher where the text is its own."""
        return frozenset({"teacher"}) if self.path == _OF_TEACHER else frozenset()


class _Reader:
    """A model of a run, as texts want to know it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.config: Mapping[str, Any] = model.config.to_dict()
        self.name: str = str(getattr(model.config, "name_or_path", "") or "the model")

    def tokenizer(self) -> Any:
        return self._tokenizer

    def load(self, dtype: Any = None, device: str = "cpu") -> Any:
        return self._model


@needing("model", "tokenizer")
def text(options: TextOptions, resources: Resources) -> TokenRows:
    """Return the rows of a text: windows in which every token of the text is counted once.

    :raises NotFoundError: when there is no such file; :raises BadInputError: when it is broken or empty.
    """
    window = window_of(options.window, resources)
    if isinstance(options.path, list):
        documents = [document for name in options.path for document in read_documents(Path(name))]
        cut = cut_documents(resources.tokenizer, documents, window, ", ".join(options.path)).spread(options.max_rows)
        return TokenRows(cut.ids, cut.labels)
    if options.path == _OF_TEACHER:
        return _of_teacher(options, window, resources)
    if options.path not in ("embedded", "self") and Path(options.path).suffix not in (".txt", ".jsonl", ".npz"):
        raise UsageError(
            f"{options.path}: unknown kind of text", hint="embedded, self, teacher, or a .txt, .jsonl or .npz file"
        )
    rows = load_rows(
        options.path, split=options.split, checkpoint=_Reader(resources.model, resources.tokenizer),
        window=window, max_rows=options.max_rows, model=resources.model,
    )  # fmt: skip
    return TokenRows(rows.ids, rows.labels)


def _of_teacher(options: TextOptions, window: int, resources: Resources) -> TokenRows:
    if resources.teacher is None:
        raise UsageError("path: teacher: the run has no teacher in memory", hint="a .txt, .jsonl or .npz file")
    rows = load_rows(
        "self", split=options.split, checkpoint=_Reader(resources.teacher, resources.tokenizer), window=window,
        max_rows=options.max_rows, model=resources.teacher,
    )  # fmt: skip
    return TokenRows(rows.ids, rows.labels)
