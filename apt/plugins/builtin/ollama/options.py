"""Options of the two operations."""

from typing import Literal

from pydantic import Field

from apt.options import FileRef, ModelRef, Options, OutputPath, Overwrite, TextRef

ExportType = Literal["q8_0", "f16", "bf16", "f32"]


class ExportOptions(Options):
    """Write a checkpoint as GGUF with a Modelfile."""

    model: ModelRef
    output: OutputPath = Field(description="The directory that appears, with NAME.gguf and Modelfile in it.")
    type: ExportType = Field(default="q8_0", description="Type of the matrices.")
    name: str = Field(
        default="", description="Name of the GGUF file without its suffix; the checkpoint's name when empty."
    )
    modelfile_template: str = Field(
        default="",
        description="Text of the Modelfile, in which {gguf} stands for the file's name; generated when empty.",
    )
    overwrite: Overwrite = False


class VerifyOptions(Options):
    """Prove a GGUF against the checkpoint that it was made of."""

    gguf: FileRef = Field(description="The file, or the directory that the export wrote.")
    model: ModelRef = Field(description="The checkpoint that it was made of.")
    text: TextRef | None = Field(
        default=None,
        description="Held-out text: embedded, self, or a .txt, .jsonl or .npz file; sampled from the checkpoint when "
        "absent.",
    )
    tokens: int = Field(
        default=2048, ge=16, description="Tokens that llama.cpp's predictions are compared on, at least."
    )
    llama_cpp: Literal["auto", "require", "skip"] = Field(
        default="auto", description="Run it in llama.cpp: where xllamacpp is installed, always, or never."
    )
