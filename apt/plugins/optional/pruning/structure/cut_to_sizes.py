"""A cut to given sizes: no search but for the layers to drop, where those are not named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apt.checkpoint.architecture import Architecture
from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.structure.hidden import Widths
from apt.plugins.optional.pruning.structure.legality import check
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, Cut, reconstruct
from apt.plugins.optional.pruning.structure.search import search
from apt.plugins.optional.pruning.structure.surgery import build

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows


@dataclass(frozen=True)
class CutModel:
    """A stock model of the sizes asked for.

    :param cut: what stayed of each block; its ``before`` has the new hidden size already.
    :param channels: channels of the residual stream that stayed.
    :param calibration: the rows it was fitted on, their dense streams reduced to ``channels``.
    """

    model: Any
    cut: Cut
    channels: tuple[int, ...]
    calibration: Calibration


def cut_to(
    model: Any,
    architecture: Architecture,
    after: Sizes,
    rows: "Rows",
    *,
    dropped: Sequence[int] | None = None,
    mend: bool = True,
) -> CutModel:
    """Cut a model to ``after`` along whichever axes differ from its own sizes.

    :param model: a float32 causal language model in evaluation mode; it is not changed.
    :param dropped: layers to leave out; ``None`` drops, one after another, those that are missed least.
    :param mend: fit what remains by least squares.
    :raises UnsupportedError: for sizes that the family's stock config refuses, with the nearest legal ones.
    """
    config = model.config.to_dict()
    before = sizes_of(architecture, config)
    decoder = Decoder.of(model, architecture)
    check(before, after, architecture, config, type(model.config))
    at = Widths(decoder, architecture, Calibration(trace(decoder, rows)), before, mend=mend).at(after.hidden)
    if dropped is None:
        narrow = Widths(at.decoder, architecture, at.calibration, at.sizes)
        dropped = () if after.layers == before.layers else search(narrow, [after])[0].dropped
    cut = reconstruct(at.decoder, at.calibration, at.sizes, after, dropped, mend=mend, measure=False).cut
    return CutModel(build(at.decoder.model, architecture, cut), cut, tuple(at.channels), at.calibration)
