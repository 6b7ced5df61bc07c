"""Low-rank adapters (LoRA; Hu et al., arXiv 2106.09685), by peft."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field
from torch import nn

from apt.console.errors import MissingDependencyError, UnsupportedError, UsageError
from apt.registry import did_you_mean
from apt.training.contract import Resources
from apt.training.forward import base_of
from apt.training.sections import Section


class LoraOptions(Section):
    """Options of ``lora``: a product of two narrow matrices beside each chosen layer, and nothing else, is trained."""

    name: Literal["lora"] = Field(default="lora", description="The component.")
    r: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0.0, description="Adapters are scaled by alpha / r.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Dropout of what goes into the adapters.")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear",
        min_length=1,
        description="Linear layers that get an adapter, by the end of their names (q_proj, mlp.up_proj); all-linear is "
        "every one but the head.",
    )

    def check_installed(self) -> None:
        """Refuse to go on without peft."""
        _peft()


class Lora:
    """Adapters in the body of the model, which :meth:`finish` adds to its weights; head and embeddings stay."""

    def __init__(self, options: LoraOptions, resources: Resources) -> None:
        self._options = options

    def begin(self, model: Any) -> Any:
        """Return the model with adapters; they change nothing at first.

        :raises UsageError: for a target that the model does not have.
        :raises UnsupportedError: for a target that cannot have an adapter.
        """
        peft = _peft()
        chosen = _chosen(model, self._options.targets)
        settings = peft.LoraConfig(
            task_type="CAUSAL_LM", r=self._options.r, lora_alpha=self._options.alpha,
            lora_dropout=self._options.dropout, target_modules=sorted(chosen),
            # Conv1D (GPT-2) holds its weight the other way round.
            fan_in_fan_out=not any(isinstance(module, nn.Linear) for module in chosen.values()),
        )  # fmt: skip
        with warnings.catch_warnings():
            # peft 0.21 asks transformers by a name that is going away.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return peft.get_peft_model(model, settings)

    def finish(self, model: Any) -> Any:
        """Add the adapters to the weights and take them away."""
        stock = model.merge_and_unload()
        if hasattr(stock, "peft_config"):  # left behind by older versions
            del stock.peft_config
        return stock.requires_grad_(True)


def _peft() -> Any:
    """The library.

    :raises MissingDependencyError: when it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise MissingDependencyError("the tuning 'lora' needs peft", hint='pip install "peft>=0.17"') from None
    return peft


def _chosen(model: Any, targets: str | list[str]) -> dict[str, nn.Module]:
    """The layers that get an adapter, by their whole names; of the body only, for losses read the head themselves."""
    body = {id(module) for module in base_of(model).modules()}
    inner = {name: module for name, module in model.named_modules() if id(module) in body}
    linear = {name: module for name, module in inner.items() if _is_linear(module)}
    if isinstance(targets, str):
        return linear
    chosen: dict[str, nn.Module] = {}
    for target in targets:
        found = {name: module for name, module in linear.items() if _ends(name, target)}
        if not found:
            _refuse(target, model, linear)
        chosen |= found
    return chosen


def _refuse(target: str, model: Any, linear: Iterable[str]) -> None:
    known = {name.rpartition(".")[2] for name in linear}
    kinds = {type(module).__name__ for name, module in model.named_modules() if _ends(name, target)}
    if kinds:
        raise UnsupportedError(
            f"train.tuning.targets: {target!r} ({', '.join(sorted(kinds))}) cannot have an adapter",
            hint=f"linear layers of the body can: {', '.join(sorted(known))}",
        )
    raise UsageError(
        f"train.tuning.targets: the model has no layer {target!r}",
        hint=did_you_mean(target.rpartition(".")[2], known),
    )


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
