"""Muon for the matrices of the layers, AdamW for everything else.

Muon (K. Jordan, 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix before it steps.
Embeddings, heads, norms and biases are not such matrices and stay with AdamW; so do the factors of adapters, whose
product is the matrix that changes and not they, and the parameters of a loss.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import torch
from pydantic import Field

from apt.training.sections import Section

#: How the names of a loss's own parameters begin, and what the names of an adapter's factors have in them.
_OF_LOSS: Final = "loss."
_OF_ADAPTER: Final = "lora_"


class MuonOptions(Section):
    """Options of ``muon``: ``lr`` for the layers' matrices, ``adamw_lr`` for the rest."""

    name: Literal["muon"] = Field(default="muon", description="The component.")
    lr: float = Field(default=0.02, gt=0.0, description="Peak learning rate of the layers' matrices.")
    adamw_lr: float = Field(default=1e-3, gt=0.0, description="Peak learning rate of all else.")
    momentum: float = Field(default=0.95, ge=0.0, lt=1.0, description="Momentum of the layers' matrices.")
    weight_decay: float = Field(
        default=0.0, ge=0.0, description="Decoupled decay of the layers' matrices; all else has none."
    )
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0, description="Decay of AdamW's mean of the gradients.")
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0, description="Decay of AdamW's mean of their squares.")


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one; learning rates are changed through ``param_groups`` as usual."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for o in self.optimizers for group in o.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Make ``param_groups`` the very dictionaries that the inner optimizers read."""
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step each optimizer; a closure is evaluated once, before."""
        loss = closure() if closure is not None else None
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"optimizers": [...]}``, a state for each."""
        return {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def is_layer_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter is a matrix inside a numbered layer (``model.layers.3.mlp.up_proj.weight``)."""
    parts = name.split(".")
    foreign = name.startswith(_OF_LOSS) or any(part.startswith(_OF_ADAPTER) for part in parts)
    return parameter.ndim == 2 and not foreign and any(part.isdigit() for part in parts)


def build(parameters: Sequence[tuple[str, torch.nn.Parameter]], options: MuonOptions) -> torch.optim.Optimizer:
    """Return Muon and AdamW as one optimizer over the trainable parameters."""
    trainable = [(n, p) for n, p in parameters if p.requires_grad]
    matrices = [p for n, p in trainable if is_layer_matrix(n, p)]
    others = [p for n, p in trainable if not is_layer_matrix(n, p)]
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(
            torch.optim.Muon(matrices, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
        )
    if others:
        betas = (options.beta1, options.beta2)
        made.append(torch.optim.AdamW(others, lr=options.adamw_lr, betas=betas, weight_decay=0.0, fused=True))
    return Together(made)
