"""Whether a directory's weights are the model that its config describes, without reading a weight.

transformers (5.23) fills missing tensors with random numbers and only logs it. Here the class that the config names
is built on the meta device, its loader matches names and shapes (conversions and tied tensors included), and what it
reports as missing, unexpected or mismatched is an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt.checkpoint.loading import quiet_transformers
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError, first_line


@dataclass(frozen=True, slots=True)
class Facts:
    """What a sound model is: ``parameters`` counts tied tensors once."""

    architecture: str
    parameters: int
    tensors: int
    dtypes: tuple[str, ...]


def check_model(directory: Path, *, label: str, trust_remote_code: bool = False) -> Facts:
    """Check headers, names and shapes of a model directory.

    :param label: what the model is called in messages.
    :param trust_remote_code: run the model's own Python code to build it.
    :raises BadInputError: when a tensor is missing, unexpected or of another shape, or a file is corrupted.
    :raises UnsupportedError: when transformers has no such model.
    """
    checkpoint = Checkpoint.open(directory)
    builder = _builder(checkpoint.config)
    with quiet_transformers():
        try:
            model, report = builder.from_pretrained(
                directory,
                device_map="meta",
                dtype="auto",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (ValueError, KeyError, ImportError) as error:
            if "auto_map" in checkpoint.config and not trust_remote_code:
                raise UnsupportedError(
                    f"{label}: transformers does not know the model type {checkpoint.config.get('model_type')!r}",
                    hint="it brings its own code; if you trust it: --trust-remote-code",
                ) from error
            raise UnsupportedError(
                f"{label}: transformers cannot build it: {_first(error, directory, label)}"
            ) from error
        except Exception as error:
            # Classes of torch, huggingface_hub's strict dataclasses, safetensors, and of foreign code: all mean that
            # config and weights do not make a model.
            raise BadInputError(f"{label}: cannot be loaded: {_first(error, directory, label)}") from error
    for what in ("missing", "unexpected", "mismatched"):
        names = sorted(n if isinstance(n, str) else str(n[0]) for n in report.get(f"{what}_keys") or ())
        if names:
            raise BadInputError(
                f"{label}: {len(names)} {what} tensor{'s' if len(names) > 1 else ''}, the first {names[0]!r}",
                hint="config.json and the weights are not of the same model",
            )
    return Facts(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        tensors=len(checkpoint.tensors),
        dtypes=tuple(sorted({t.dtype for t in checkpoint.tensors.values()})),
    )


def _builder(config: dict[str, Any]) -> Any:
    """The class that the config names, or transformers' choice of a causal language model."""
    import transformers

    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str) and "auto_map" not in config:
        found = getattr(transformers, named[0], None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModelForCausalLM


def _first(error: BaseException, directory: Path, label: str) -> str:
    return first_line(error).replace(str(directory), label)
