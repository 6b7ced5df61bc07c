"""Marks on the fields of an operation's options: which of them are models, files and outputs.

The recipe engine reads them to compute a step's key from what the step reads, and to know what it leaves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apt.console.errors import UsageError


@dataclass(frozen=True, slots=True)
class Input:
    """The field names something that the operation reads."""

    what: Literal["model", "text", "file", "config"]


@dataclass(frozen=True, slots=True)
class Output:
    """The field names the file or directory that the operation writes, atomically."""


#: A model: a path, a name in the store, ``hf:owner/name[@revision]``, ``tiny``.
ModelRef = Annotated[
    str, Input("model"), Field(description="A path, a name in the store, tiny, or hf:owner/name[@revision].")
]
#: A text: ``embedded``, ``self``, or a file (``.txt``, ``.jsonl`` with "text", ``.npz`` with token rows).
TextRef = Annotated[
    str,
    Input("text"),
    Field(description="embedded, self (sampled from the model), or a .txt, .jsonl or .npz file."),
]
#: Any other file that is read.
FileRef = Annotated[Path, Input("file"), Field(description="A file that is read.")]
#: A training config: a YAML file, or the name of a shipped one.
ConfigRef = Annotated[str, Input("config"), Field(description="A YAML file, or the name of a shipped config.")]
#: What the operation writes.
OutputPath = Annotated[Path, Output(), Field(description="What is written: it appears whole or not at all.")]
#: Whether an output that exists is replaced.
Overwrite = Annotated[bool, Field(description="Replace an existing output.")]


class Options(BaseModel):
    """Base of every operation's options: unknown keys are refused, values are not coerced silently.

    Every field has a description: ``docs/configuration.md`` is made of them.
    """

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
            message = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:  # of several options together; the message names them
                raise UsageError(message) from None
            option = str(first["loc"][0]).replace("_", "-")
            raise UsageError(f"--{option} {first['input']}: {message}") from None
