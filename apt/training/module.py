"""Model and loss as one module."""

from typing import Any

import torch
from torch import Tensor, nn

from apt.training.contract import Batch, Loss, LossOut
from apt.training.evaluation import score
from apt.training.sharding import whole


class LossModule(nn.Module):
    """What is trained: the model, and the parameters that the loss has of its own.

    One forward pass is the whole loss of a micro-batch, so that what is around a module (DDP, FSDP2) sees every pass
    begin and end, whatever parts of the model a loss runs.
    """

    #: Read by Trainer when a saved state lacks a key, as ours do of all that is not trained.
    _keys_to_ignore_on_save = None

    def __init__(self, model: Any, loss: Loss) -> None:
        super().__init__()
        self.model = model
        #: A submodule where the loss has parameters of its own.
        self.loss: Any = loss
        #: What the last forward pass gave.
        self.out: LossOut | None = None

    def forward(self, batch: Batch, rng: torch.Generator, step: int) -> Tensor:
        """Return the summed loss of a micro-batch."""
        out: LossOut = self.loss(self.model, batch, rng=rng, step=step)
        self.out = out
        return out.loss_sum

    def prepare(self, batch: Batch, rng: torch.Generator, step: int) -> Batch:
        """Return the batch as the loss wants it: itself, or what the model wrote in its place."""
        prepare = getattr(self.loss, "prepare", None)
        if prepare is None:
            return batch
        with torch.no_grad():
            prepared: Batch = prepare(self.model, batch, rng=rng, step=step)
        return prepared

    def score(self, batch: Batch) -> Tensor:
        """Return the batch's :func:`~apt.training.evaluation.score`, whatever the loss."""
        return score(self.model, batch)

    def trained_state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Return what a run changes: parameters that are trained, and buffers that are saved; each tensor once.

        Where parameters are sharded over processes, all have to call it; those that do not ``keep`` get nothing.
        """
        kept = {name for name, p in self.named_parameters() if p.requires_grad}
        parameters = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        state = self.state_dict()
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name in kept or name not in parameters:
                gathered = whole(tensor)
                if keep:
                    found[name] = gathered.contiguous()
        return found
