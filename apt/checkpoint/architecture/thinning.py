"""What the config of a model says of single layers, when some of them go."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Config values that hold one entry a layer.
PER_LAYER_KEYS: Final = ("layer_types", "no_rope_layers", "mlp_layer_types")


def thinned(config: Mapping[str, Any], kept: Sequence[int], *, layers: int) -> dict[str, Any]:
    """Return a copy of a config whose entries per layer are those of the layers that are kept.

    The number of layers itself is not changed.

    :param kept: numbers of the layers, ascending.
    :param layers: how many there were.
    """
    result = copy.deepcopy(dict(config))
    for key in PER_LAYER_KEYS:
        if isinstance(result.get(key), list) and len(result[key]) == layers:
            result[key] = [result[key][layer] for layer in kept]
    if "max_window_layers" in result:
        result["max_window_layers"] = sum(layer < result["max_window_layers"] for layer in kept)
    return result
