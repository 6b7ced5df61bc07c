"""Marks on the fields of an operation's options: which of them are models, files and outputs.

The recipe engine reads them to compute a step's key from what the step reads, and to know what it leaves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from apt.console.errors import UsageError


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

    @classmethod
    def of_command(cls, **values: Any) -> Self:
        """Build the options from a command line's values.

        :raises UsageError: naming the first option whose value is not right, in one line.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]).replace("_", "-") if first["loc"] else "options"
            raise UsageError(f"--{option} {first['input']}: {first['msg']}") from None
