"""Options of the two operations."""

from typing import Literal

from pydantic import Field

from apt.options import FileRef, ModelRef, Options, OutputPath, TextRef

ExportType = Literal["q8_0", "f16", "bf16", "f32"]


class ExportOptions(Options):
    """Write a checkpoint as GGUF with a Modelfile."""

    model: ModelRef
    #: The directory that appears, with ``NAME.gguf`` and ``Modelfile`` in it.
    output: OutputPath
    type: ExportType = "q8_0"
    #: Name of the GGUF file without its suffix; the checkpoint's name when empty.
    name: str = ""
    #: Text of the Modelfile, in which ``{gguf}`` stands for the file's name; generated when empty.
    modelfile_template: str = ""
    overwrite: bool = False


class VerifyOptions(Options):
    """Prove a GGUF against the checkpoint that it was made of."""

    #: The file, or the directory that the export wrote.
    gguf: FileRef
    model: ModelRef
    #: Held-out text; sampled from the checkpoint when absent.
    text: TextRef | None = None
    #: Tokens that llama.cpp's predictions are compared on, at least.
    tokens: int = Field(default=2048, ge=16)
    #: Run it in llama.cpp: where ``xllamacpp`` is installed, always, or never.
    llama_cpp: Literal["auto", "require", "skip"] = "auto"
