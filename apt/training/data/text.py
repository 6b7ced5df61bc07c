"""Plain text and token rows, held in memory: what pruning, distillation and measuring read too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from apt.console.errors import UsageError
from apt.evaluation.texts import cut_documents, load_rows, read_documents
from apt.training.components import needing
from apt.training.contract import Resources
from apt.training.data.files import window_of
from apt.training.data.rows import TokenRows
from apt.training.sections import Section


class TextOptions(Section):
    """Options of ``text``."""

    name: Literal["text"] = Field(default="text", description="The component.")
    path: str | list[str] = Field(
        min_length=1,
        description='embedded, self (sampled from the model), a .txt, .jsonl (key "text") or .npz file, or a list of '
        ".txt and .jsonl files.",
    )
    split: Literal["train", "calibration", "heldout"] = Field(
        default="train", description="Of embedded, self and .npz; the other files are used whole."
    )
    window: int | None = Field(
        default=None, ge=2, description="Tokens a row; the model's context, at most 512, when absent."
    )
    max_rows: int | None = Field(default=None, ge=1, description="At most so many rows, spread over the text.")


class _Reader:
    """The model of a run, as texts want to know it."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.config: Mapping[str, Any] = resources.model.config.to_dict()
        self.name: str = str(getattr(resources.model.config, "name_or_path", "") or "the model")

    def tokenizer(self) -> Any:
        return self._resources.tokenizer

    def load(self, dtype: Any = None, device: str = "cpu") -> Any:
        return self._resources.model


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
    if options.path not in ("embedded", "self") and Path(options.path).suffix not in (".txt", ".jsonl", ".npz"):
        raise UsageError(f"{options.path}: unknown kind of text", hint="embedded, self, or a .txt, .jsonl or .npz file")
    rows = load_rows(
        options.path, split=options.split, checkpoint=_Reader(resources), window=options.window,
        max_rows=options.max_rows, model=resources.model,
    )  # fmt: skip
    return TokenRows(rows.ids, rows.labels)
