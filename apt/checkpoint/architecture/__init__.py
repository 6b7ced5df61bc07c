"""Architecture descriptors: one declarative table of model families.

For each family it says which tensor is which, which sizes mean what, what sizes are legal, and how large the cache
of a sequence is. ``info``, pruning, distillation, GGUF export and ``debug`` read this table; a family that is not in
it is refused by what needs one. Tensor names and config keys are those of transformers 5.
"""

from apt.checkpoint.architecture.descriptor import Architecture, LayerKind, Part
from apt.checkpoint.architecture.dimensions import Dimensions, Experts, Latent, LinearAttention
from apt.checkpoint.architecture.families import ARCHITECTURES, descriptor

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Dimensions",
    "Experts",
    "Latent",
    "LayerKind",
    "LinearAttention",
    "Part",
    "descriptor",
]
