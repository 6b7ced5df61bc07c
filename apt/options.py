"""Marks on the fields of an operation's options: which of them are models, files and outputs.

The recipe engine reads them to compute a step's key from what the step reads, and to know what it leaves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Input:
    """The field names something that the operation reads."""

    what: Literal["model", "text", "file"]


@dataclass(frozen=True, slots=True)
class Output:
    """The field names the file or directory that the operation writes, atomically."""


#: A model: a path, a name in the store, ``hf:owner/name[@revision]``, ``tiny``.
ModelRef = Annotated[str, Input("model")]
#: A text: ``embedded``, ``self``, or a file (``.txt``, ``.jsonl`` with "text", ``.npz`` with token rows).
TextRef = Annotated[str, Input("text")]
#: Any other file that is read.
FileRef = Annotated[Path, Input("file")]
#: What the operation writes.
OutputPath = Annotated[Path, Output()]


class Options(BaseModel):
    """Base of every operation's options: unknown keys are refused, values are not coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)
