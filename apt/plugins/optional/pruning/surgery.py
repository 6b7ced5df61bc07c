"""The knife: from a dense checkpoint's tensors and config to those of the cut model.

Every tensor of a layer has a rule by its role; a tensor without a rule stops the surgery, so that nothing is cut by
guess. Rows of q, k, v belong to heads, columns of o too; rows of gate and up and columns of down are ff channels.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.architecture.thinning import thinned
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.leastsquares import members
from apt.plugins.optional.pruning.plans import Sizes
from apt.plugins.optional.pruning.reconstruct import BlockCut, Cut

#: Roles whose tensors stay as they are: norms over hidden or over a head.
_UNCUT: Final = ("attention_norm", "mlp_norm", "q_norm", "k_norm")


def cut_config(config: Mapping[str, Any], cut: Cut) -> dict[str, Any]:
    """Return the config of the cut model: sizes changed, entries per layer thinned, ``head_dim`` always spelled out."""
    result = thinned(config, [block.layer for block in cut.blocks], layers=cut.before.layers)
    result["num_hidden_layers"] = cut.after.layers
    result["num_attention_heads"] = cut.after.heads
    result["num_key_value_heads"] = cut.after.kv_groups
    result["intermediate_size"] = cut.after.ff
    result["head_dim"] = cut.after.head_dim
    return result


def cut_tensors(tensors: Mapping[str, Tensor], architecture: Architecture, cut: Cut) -> Iterator[tuple[str, Tensor]]:
    """Yield the cut model's tensors by name, in the dense dtype, layers numbered anew.

    :param tensors: the dense model's tensors by name; ``o`` [hidden, heads * head_dim] and so on.
    :raises UnsupportedError: for a tensor in a layer that has no rule.
    """
    places = {block.layer: place for place, block in enumerate(cut.blocks)}
    for name, tensor in tensors.items():
        layer = architecture.layer_of(name)
        if layer is None:
            yield name, tensor
        elif layer in places:
            place = places[layer]
            role = architecture.role_of(name)
            inner = name.removeprefix(architecture.layer_prefix.format(layer))
            renamed = architecture.layer_prefix.format(place) + inner
            yield renamed, _cut_tensor(name, tensor, role, cut.blocks[place], cut)


def _cut_tensor(name: str, tensor: Tensor, role: str | None, block: BlockCut, cut: Cut) -> Tensor:
    """Cut one tensor of a layer that stays; biases follow the rows of their weight."""
    bias = name.endswith(".bias")
    if role in _UNCUT:
        return tensor
    if role == "o":
        return tensor if bias else _columns(tensor, members(block.heads, cut.before.head_dim), block.output)
    if role == "down":
        return tensor if bias else _columns(tensor, block.channels, block.down)
    if role == "q":
        return tensor[torch.tensor(members(block.heads, cut.before.head_dim))].contiguous()
    if role in ("k", "v"):
        return tensor[torch.tensor(members(block.groups, cut.before.head_dim))].contiguous()
    if role in ("gate", "up"):
        return tensor[torch.tensor(block.channels)].contiguous()
    raise UnsupportedError(f"structured pruning has no rule for the tensor {name!r}")


def _columns(tensor: Tensor, keep: Sequence[int], mended: Tensor | None) -> Tensor:
    if mended is not None:
        return mended.to(tensor.dtype).contiguous()
    return tensor[:, torch.tensor(keep)].contiguous()


def cut_shape(name: str, shape: tuple[int, ...], role: str | None, after: Sizes) -> tuple[int, ...]:
    """Return the shape that a layer's tensor has after the cut.

    :raises UnsupportedError: for a tensor that has no rule.
    """
    rows = {"q": after.heads * after.head_dim, "gate": after.ff, "up": after.ff}
    rows |= dict.fromkeys("kv", after.kv_groups * after.head_dim)
    columns = {"o": after.heads * after.head_dim, "down": after.ff}
    if role in rows:
        return (rows[role], *shape[1:])
    if role in columns:
        return shape if len(shape) == 1 else (shape[0], columns[role])
    if role in _UNCUT:
        return shape
    raise UnsupportedError(f"structured pruning has no rule for the tensor {name!r}")


def build(model: Any, architecture: Architecture, cut: Cut) -> Any:
    """Return a new transformers model, the cut form of ``model``, in evaluation mode and in the dtype of ``model``."""
    config = type(model.config).from_dict(cut_config(model.config.to_dict(), cut))
    cut_model = type(model)._from_config(config, dtype=model.dtype)
    tensors = dict(cut_tensors(model.state_dict(), architecture, cut))
    cut_model.load_state_dict(tensors, strict=True, assign=False)
    if config.tie_word_embeddings:
        cut_model.tie_weights()
    cut_model.generation_config = copy.deepcopy(model.generation_config)
    return cut_model.eval()
