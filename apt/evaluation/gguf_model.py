"""A GGUF as ``compare`` needs it: its facts from the header, tokenizer and model through transformers' own reader.

Without llama.cpp a GGUF is computed from the values that it stores, taken back to floats: what quantizing the weights
costs is seen, what a runtime's own arithmetic does is not.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.loading import quiet_transformers
from apt.console.errors import BadInputError, MissingDependencyError, UnsupportedError, first_line

if TYPE_CHECKING:
    import torch


class GGUFModel:
    """What a text is read for, see :class:`apt.evaluation.texts.Reader`, and what is told of the file."""

    def __init__(self, file: GGUFFile) -> None:
        self.path: Path = file.path
        self.size_bytes: int = file.size_bytes
        self.parameters: int = file.parameters
        self.config: Mapping[str, Any] = {
            "max_position_embeddings": file.field("context_length"),
            "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        }

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def tokenizer(self) -> Any:
        """Return the tokenizer that the file holds.

        :raises UnsupportedError: when transformers cannot build it.
        """
        from transformers import AutoTokenizer

        return _read(self.path, AutoTokenizer, "tokenizer")

    def load(self, dtype: "torch.dtype | None" = None, device: str = "cpu") -> Any:
        """Return a transformers model of the file's values as floats, in fp32 whatever ``dtype``."""
        return load_gguf(self.path).to(device)


def load_gguf(path: Path) -> Any:
    """Return a transformers model in fp32 of a GGUF's values.

    Memory: the floats, 4 bytes a parameter, and one tensor beside them.

    :raises UnsupportedError: for an architecture that transformers does not read from GGUF.
    :raises BadInputError: when the file lacks a tensor of the model, which transformers fills with random numbers.
    :raises MissingDependencyError: without the package ``gguf``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model, report = _read(path, AutoModelForCausalLM, "model", dtype=torch.float32, output_loading_info=True)
    missing = sorted(str(n) for what in ("missing_keys", "mismatched_keys") for n in report.get(what) or ())
    if missing:
        raise BadInputError(f"{path}: {len(missing)} tensors of the model are missing, the first {missing[0]!r}")
    return model.eval()


def _read(path: Path, kind: Any, what: str, **more: Any) -> Any:
    try:
        import gguf  # noqa: F401 - transformers reads the file with it
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"{path}: reading a GGUF needs the package gguf", hint="pip install gguf"
        ) from None
    with quiet_transformers(), redirect_stderr(io.StringIO()):  # a progress bar of its own, which no setting silences
        try:
            return kind.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False, **more
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            raise UnsupportedError(f"{path}: transformers cannot read its {what}: {first_line(error)}") from error
        except Exception as error:
            # Bare exceptions of tokenizers, and whatever a broken file makes numpy or torch say.
            raise BadInputError(f"{path}: its {what} cannot be read: {first_line(error)}") from error
