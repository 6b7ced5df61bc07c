"""Distillation of inner states: hidden states of mapped layers, and attention maps.

Hidden states are compared at counted tokens, the student's through a projection to the teacher's width (FitNets, arXiv
1412.6550). Attention maps are compared row by row as distributions over the tokens that are attended to (MiniLM, arXiv
2002.10957, section 3.1), averaged over heads, so that the numbers of heads may differ.
"""

from typing import Any, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from apt.checkpoint.architecture import descriptor
from apt.console.errors import UnsupportedError, UsageError
from apt.training.contract import Batch, counted
from apt.training.forward import ATTENTIONS, HIDDEN_STATES, Body

#: Config entries by which families drop attention weights while they train.
_DROPOUTS: Final = ("attention_dropout", "attn_pdrop")


class FeatureSettings(BaseModel):
    """What of the inner states is compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, ge=0.0, description="Of the hidden states' distance within the term.")
    layers: Literal["auto"] | list[tuple[NonNegativeInt, NonNegativeInt]] = Field(
        default="auto",
        description="Pairs [student, teacher] of layers whose outputs are compared, counted from 1, 0 for the "
        "embeddings; auto spreads the student's layers evenly over the teacher's.",
    )
    distance: Literal["mse", "cosine"] = Field(
        default="mse", description="Mean squared difference of the values, or one minus the cosine."
    )
    attention_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Of KL(teacher || student) between attention maps; above 0 training runs with eager attention.",
    )
    projection: Literal["learned", "none"] = Field(
        default="learned",
        description="Of the student's states to the teacher's width, one for each pair; none needs equal widths.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.weight and not self.attention_weight:
            raise ValueError("weight and attention_weight are both 0: nothing is compared")
        if self.layers == []:
            raise ValueError("layers is empty: nothing is compared")
        if self.attention_weight and self.layers != "auto" and any(0 in pair for pair in self.layers):
            raise ValueError("layers names 0, the embeddings, which have no attention map")
        if len(self.layers) != len(set(self.layers)):
            raise ValueError("layers names a pair twice")
        return self


class FeatureTerm(nn.Module):
    """The distance of a student's inner states from its teacher's, with the projections between them.

    :raises UnsupportedError: for ``layers: auto`` and a family without a descriptor, and for attention maps of a family
        that has none in some layer.
    :raises UsageError: when a layer is named that a model does not have, or widths differ without a projection.
    """

    def __init__(self, settings: FeatureSettings, student: Any, teacher: Any) -> None:
        super().__init__()
        self._settings = settings
        self.pairs = layer_pairs(settings, student.config, teacher.config)
        self.wanted = frozenset(
            ([HIDDEN_STATES] if settings.weight else []) + ([ATTENTIONS] if settings.attention_weight else [])
        )
        if settings.attention_weight:
            _check_maps(student.config, teacher.config)
        widths = [m.config.get_text_config().hidden_size for m in (student, teacher)]
        self.projections = nn.ModuleDict()
        if settings.weight and settings.projection == "learned":
            # The names hold no bare number: optimizers for the matrices of numbered layers leave them alone.
            self.projections.update({f"from_{s}_to_{t}": _projection(*widths) for s, t in self.pairs})
        elif settings.weight and widths[0] != widths[1]:
            raise UsageError(
                f"the student's hidden states have {widths[0]} values, the teacher's {widths[1]}",
                hint="projection: learned",
            )

    def forward(self, ours: Body, theirs: Body, batch: Batch) -> list[tuple[str, float, Tensor]]:
        """Return what is compared: its metric, its weight, and its values (``[counted tokens]``, means over pairs)."""
        mask, settings = counted(batch["labels"]), self._settings
        found = []
        if settings.weight:
            states = [self._distance(ours, theirs, mask, s, t) for s, t in self.pairs]
            found.append(("loss/feature", settings.weight, torch.stack(states).mean(0)))
        if settings.attention_weight:
            maps = [map_divergence(ours.attentions[s - 1], theirs.attentions[t - 1], mask) for s, t in self.pairs]
            found.append(("loss/attention", settings.attention_weight, torch.stack(maps).mean(0)))
        return found

    def _distance(self, ours: Body, theirs: Body, mask: Tensor, student: int, teacher: int) -> Tensor:
        mine, wanted = ours.layers[student][:, :-1][mask], theirs.layers[teacher][:, :-1][mask]
        name = f"from_{student}_to_{teacher}"
        if name in self.projections:
            projection: Any = self.projections[name]
            mine = projection(mine.to(projection.weight.dtype))
        dtype = torch.promote_types(mine.dtype, torch.float32)
        mine, wanted = mine.to(dtype), wanted.to(dtype)
        if self._settings.distance == "cosine":
            return 1.0 - nn.functional.cosine_similarity(mine, wanted, dim=-1)
        return (mine - wanted).square().mean(-1)


def map_divergence(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each counted token's attention, averaged over heads first; ``[counted tokens]``.

    :param ours: ``[rows, heads, window, window]``; ``theirs`` may have another number of heads.
    :param mask: ``[rows, window - 1]``, which tokens predict a counted one.
    """
    dtype = torch.promote_types(ours.dtype, torch.float32)
    q, p = (maps.to(dtype).mean(1)[:, :-1][mask] for maps in (ours, theirs))
    tiny = torch.finfo(dtype).tiny
    return (torch.xlogy(p, p) - p * q.clamp_min(tiny).log()).sum(-1)


def layer_pairs(settings: FeatureSettings, student: Any, teacher: Any) -> list[tuple[int, int]]:
    """Return the layers that are compared, ``(student, teacher)``, by the models' configs."""
    if settings.layers == "auto":
        mine, wanted = _depth(student), _depth(teacher)
        return [(layer, _even(layer, mine, wanted)) for layer in range(1, mine + 1)]
    for side, config in enumerate((student, teacher)):
        most = config.get_text_config().num_hidden_layers
        high = max(pair[side] for pair in settings.layers)
        if high > most:
            who = "teacher" if side else "student"
            raise UsageError(f"feature.layers names layer {high} of the {who}, which has {most}")
    return list(settings.layers)


def _even(layer: int, mine: int, wanted: int) -> int:
    """The teacher's layer at a student's layer's depth; the last belongs to the last (TinyBERT, arXiv 1909.10351)."""
    return max(1, (2 * layer * wanted + mine) // (2 * mine))


def _depth(config: Any) -> int:
    sizes = config.to_dict()
    try:
        return descriptor(sizes, where=config.model_type).dimensions(sizes).layers
    except UnsupportedError as error:
        raise UnsupportedError(
            f"the layers cannot be mapped: {error.message}", hint="name the pairs in feature.layers"
        ) from None


def _check_maps(student: Any, teacher: Any) -> None:
    """Refuse models that have no attention map to compare."""
    dropped = next((name for name in _DROPOUTS if getattr(student, name, 0.0)), None)
    if dropped is not None:
        raise UsageError(f"attention maps are no distributions where {dropped} is not 0", hint="attention_weight: 0")
    for config in (student, teacher):
        sizes = config.to_dict()
        family = descriptor(sizes, where=config.model_type)
        if any(k.mixer == "linear" for k in family.kinds(sizes, family.dimensions(sizes).layers)):
            raise UnsupportedError(f"{config.model_type}: layers of linear attention have no attention map")


def _projection(width: int, wanted: int) -> nn.Linear:
    """A projection that begins without a choice of its own: the identity, or orthogonal rows by a fixed seed."""
    linear = nn.Linear(width, wanted, bias=False, dtype=torch.float32)
    with torch.no_grad():
        if width == wanted:
            nn.init.eye_(linear.weight)
        else:
            nn.init.orthogonal_(linear.weight, generator=torch.Generator().manual_seed(0))
    return linear
