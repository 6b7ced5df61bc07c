"""A cut told layer by layer."""

from apt.plugins.optional.pruning.contract import LayerCut
from apt.plugins.optional.pruning.structure.reconstruct import Cut


def layer_cuts(cut: Cut) -> tuple[LayerCut, ...]:
    """Return the cut layer by layer, dropped layers among them."""
    before, after = cut.before, cut.after
    places = {block.layer: place for place, block in enumerate(cut.blocks)}
    result = []
    for layer in range(before.layers):
        dense = (before.heads, before.kv_groups, before.ff)
        place = places.get(layer)
        left = (0, 0, 0) if place is None else (after.heads, after.kv_groups, after.ff)
        block = None if place is None else cut.blocks[place]
        result.append(
            LayerCut(
                layer, place, dense[0], left[0], dense[1], left[1], dense[2], left[2],
                removed_share=1.0 if block is None else 1.0 - after.layer_weights / before.layer_weights,
                stream_error=block.stream_error if block else None,
                kept_heads=block.heads if block else (),
                head_importance=block.head_importance if block else (),
            )
        )  # fmt: skip
    return tuple(result)
