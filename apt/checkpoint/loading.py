"""From headers to a live transformers model, refusing what transformers would let pass.

``from_pretrained`` (5.23) fills missing tensors with random numbers and reports them in a log line; it also reads
index entries that point outside the directory. Here both are errors; the index was checked when the headers were read.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.console.errors import BadInputError, MissingDependencyError, NotFoundError, UnsupportedError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from apt.checkpoint.reader import Checkpoint


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' log lines and progress bars while what they would say is checked here."""
    from transformers.utils import logging

    # transformers does not annotate this module.
    transformers_logging: Any = logging
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(50)  # logging.CRITICAL
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _told_as_unloadable(path: Path) -> Iterator[None]:
    """Turn what transformers raises while it builds a model into one line, and keep its log lines away."""
    with quiet_transformers():
        try:
            yield
        except (ValueError, KeyError) as error:
            raise UnsupportedError(f"{path}: transformers cannot build it: {first_line(error)}") from error
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # the library of a quantised format; transformers names the package to install
            raise MissingDependencyError(f"{path}: cannot be loaded: {first_line(error)}") from error
        except (RuntimeError, OSError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise BadInputError(f"{path}: cannot be loaded: {first_line(error)}") from error
        except Exception as error:
            # Config validation raises classes of its own (huggingface_hub's strict dataclasses), safetensors another.
            if type(error).__module__.partition(".")[0] not in ("huggingface_hub", "safetensors", "safetensors_rust"):
                raise
            raise BadInputError(f"{path}: cannot be loaded: {first_line(error)}") from error


def load_model(checkpoint: "Checkpoint", *, dtype: "torch.dtype | None", device: str) -> "PreTrainedModel":
    """Load a causal language model; see :meth:`apt.checkpoint.reader.Checkpoint.load`."""
    _check_layers(checkpoint)
    from transformers import AutoModelForCausalLM

    model: Any
    report: Mapping[str, Any]
    with _told_as_unloadable(checkpoint.path):
        load: Any = AutoModelForCausalLM.from_pretrained
        model, report = load(
            checkpoint.path,
            dtype=dtype if dtype is not None else "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(n if isinstance(n, str) else str(n[0]) for n in report.get(what) or ())
        if names:
            raise BadInputError(
                f"{checkpoint.path}: {len(names)} {what.replace('_', ' ')}, the first {names[0]!r}",
                hint="config.json and the weights are not of the same model",
            )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def empty_model(checkpoint: "Checkpoint", config: Mapping[str, Any] | None = None) -> "PreTrainedModel":
    """Build a causal language model without weights, on the meta device, in float32 and evaluation mode.

    :param config: another config of the same family; the checkpoint's when absent.
    :raises UnsupportedError: and the others of :meth:`apt.checkpoint.reader.Checkpoint.load`.
    """
    _check_layers(checkpoint)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with _told_as_unloadable(checkpoint.path), torch.device("meta"):
        found: Any = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
        if config is not None:
            found = type(found).from_dict(dict(config))
        build: Any = AutoModelForCausalLM.from_config
        model: Any = build(found, dtype=torch.float32, trust_remote_code=False)
    empty: PreTrainedModel = model.eval()
    return empty


def _check_layers(checkpoint: "Checkpoint") -> None:
    layers = checkpoint.config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(checkpoint.tensors):
        raise BadInputError(f"{checkpoint.path}: the config asks for {layers} layers, more than it has tensors")


def load_tokenizer(checkpoint: "Checkpoint") -> "PreTrainedTokenizerBase":
    """Load the tokenizer; see :meth:`apt.checkpoint.reader.Checkpoint.tokenizer`."""
    from transformers import AutoTokenizer

    path = checkpoint.path
    if not any((path / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise NotFoundError(f"{path} has no tokenizer", hint="copy tokenizer.json of the original model beside it")
    with quiet_transformers():
        try:
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            # tokenizers raises bare Exception on a corrupted file.
            raise BadInputError(f"{path}: the tokenizer cannot be loaded: {first_line(error)}") from error
    return found
