"""The knife: from a dense checkpoint's tensors and config to those of the cut model.

Every tensor of a layer has a rule by its role; a tensor without a rule stops the surgery, so that nothing is cut by
guess. Rows of q, k, v belong to heads, columns of o too; rows of gate and up and columns of down are ff channels; the
other side of each matrix, and norms, are the residual stream's channels. Rows of fused matrices follow their parts.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.architecture.thinning import thinned
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.decoder.leastsquares import members
from apt.plugins.optional.pruning.decoder.matrices import FUSED
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.structure.reconstruct import BlockCut, Cut

#: Norms over the residual stream, and those over a head, which every head shares.
_NORMS: Final = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
_HEAD_NORMS: Final = ("q_norm", "k_norm")


def cut_config(config: Mapping[str, Any], architecture: Architecture, cut: Cut) -> dict[str, Any]:
    """Return the config of the cut model, see :func:`sized_config`."""
    return sized_config(config, architecture, [block.layer for block in cut.blocks], cut.before, cut.after)


def sized_config(
    config: Mapping[str, Any], architecture: Architecture, kept: Sequence[int], before: Sizes, after: Sizes
) -> dict[str, Any]:
    """Return a config with other sizes, entries per layer thinned, ``head_dim`` always spelled out.

    :param kept: layers that stay.
    """
    result = thinned(config, kept, layers=before.layers)
    result[architecture.key("num_hidden_layers")] = after.layers
    result[architecture.key("hidden_size")] = after.hidden
    result[architecture.key("num_attention_heads")] = after.heads
    result[architecture.key("intermediate_size")] = after.ff
    if not architecture.heads_fill_hidden:
        result[architecture.key("num_key_value_heads")] = after.kv_groups
        result["head_dim"] = after.head_dim
    return result


def cut_tensors(tensors: Mapping[str, Tensor], architecture: Architecture, cut: Cut) -> Iterator[tuple[str, Tensor]]:
    """Yield the cut model's tensors by name, in the dense dtype, layers numbered anew.

    :param tensors: the dense model's tensors by name, as the family stores them.
    :raises UnsupportedError: for a tensor in a layer that has no rule.
    """
    places = {block.layer: place for place, block in enumerate(cut.blocks)}
    for name, tensor in tensors.items():
        layer = architecture.layer_of(name)
        if layer is None:
            yield name, tensor
        elif layer in places:
            place = places[layer]
            inner = name.removeprefix(architecture.layer_prefix.format(layer))
            renamed = architecture.layer_prefix.format(place) + inner
            yield renamed, _cut_tensor(name, tensor, architecture, cut.blocks[place], cut.before)


def _cut_tensor(name: str, tensor: Tensor, architecture: Architecture, block: BlockCut, before: Sizes) -> Tensor:
    """Cut one tensor of a layer that stays; biases follow the rows of their weight."""
    role = architecture.role_of(name)
    if role in _NORMS or role in _HEAD_NORMS:
        return tensor
    stored = tensor.T if architecture.transposed and tensor.ndim == 2 else tensor
    mended = {"o": block.output, "down": block.down}.get(role or "")
    if mended is not None and tensor.ndim == 2:
        result = mended.to(tensor.dtype)
    else:
        rows, columns = _kept_rows(role, block, before), _kept_columns(role, block, before)
        if rows is None and columns is None:
            raise UnsupportedError(f"structured pruning has no rule for the tensor {name!r}")
        result = stored if rows is None else stored[torch.tensor(rows)]
        if columns is not None and tensor.ndim == 2:
            result = result[:, torch.tensor(columns)]
    return (result.T if architecture.transposed and tensor.ndim == 2 else result).contiguous()


def _kept_rows(role: str | None, block: BlockCut, before: Sizes) -> list[int] | None:
    """Return the outputs that stay; ``None`` for all of them."""
    if role is not None and role in FUSED:
        rows: list[int] = []
        first = 0
        for part in FUSED[role]:
            kept = _kept_rows(part, block, before)
            assert kept is not None
            rows += [first + row for row in kept]
            first += _size(part, before)
        return rows
    if role == "q":
        return members(block.heads, before.head_dim)
    if role in ("k", "v"):
        return members(block.groups, before.head_dim)
    return list(block.channels) if role in ("gate", "up") else None


def _kept_columns(role: str | None, block: BlockCut, before: Sizes) -> list[int] | None:
    """Return the inputs that stay; ``None`` for all of them."""
    if role == "o":
        return members(block.heads, before.head_dim)
    return list(block.channels) if role == "down" else None


def _size(role: str, sizes: Sizes) -> int:
    """Size of the side of a matrix that is not the residual stream's."""
    if role in FUSED:
        return sum(_size(part, sizes) for part in FUSED[role])
    if role in ("k", "v"):
        return sizes.kv_groups * sizes.head_dim
    return sizes.heads * sizes.head_dim if role in ("q", "o") else sizes.ff


def cut_shape(name: str, shape: tuple[int, ...], architecture: Architecture, after: Sizes) -> tuple[int, ...]:
    """Return the shape that a tensor has after the cut.

    :raises UnsupportedError: for a tensor that has no rule.
    """
    role = architecture.role_of(name)
    if architecture.layer_of(name) is None:
        if architecture.component_of(name) in ("embedding", "head"):
            return (shape[0], after.hidden)
        return (after.hidden,) if architecture.component_of(name) == "norm" else shape
    if role in _NORMS:
        return (after.hidden,)
    if role in _HEAD_NORMS:
        return shape
    if role in ("o", "down"):
        out, into = after.hidden, _size(role, after)
    elif role in ("q", "k", "v", "gate", "up", *FUSED):
        out, into = _size(role, after), after.hidden
    else:
        raise UnsupportedError(f"structured pruning has no rule for the tensor {name!r}")
    if len(shape) == 1:
        return (out,)
    return (into, out) if architecture.transposed else (out, into)


def build(model: Any, architecture: Architecture, cut: Cut) -> Any:
    """Return a new transformers model, the cut form of ``model``, in evaluation mode and in the dtype of ``model``."""
    config = cut_config(model.config.to_dict(), architecture, cut)
    return assemble(model, config, dict(cut_tensors(model.state_dict(), architecture, cut)))


def assemble(model: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return a new model of the class of ``model`` with another config and other tensors.

    :raises UnsupportedError: when the family's stock config class refuses the sizes.
    """
    built = stock_config(type(model.config), config)
    new = type(model)._from_config(built, dtype=model.dtype)
    new.load_state_dict(tensors, strict=True, assign=False)
    if built.tie_word_embeddings:
        new.tie_weights()
    new.generation_config = copy.deepcopy(model.generation_config)
    return new.eval()


def stock_config(config_class: Any, config: Mapping[str, Any]) -> Any:
    """Build the config that stock transformers would read back, all its checks among it.

    :raises UnsupportedError: with the reason of the config class.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        built = config_class.from_dict(dict(config))
        built.validate()
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().rpartition("\n")[2].strip()
        raise UnsupportedError(
            f"the stock config of {config_class.model_type} refuses these sizes: {reason}"
        ) from error
    return built
