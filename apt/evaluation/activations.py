"""What flows through a model: the first module with a non-finite or exploding value, neurons and heads that never fire.

Forward hooks on every module that has no children see inputs and outputs in the order in which they are computed.
transformers' ``DebugUnderflowOverflow`` names modules alike; here the inputs tell *where it began*: the first module
whose output is not finite although all that went into it was.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.diagnosis_weights import FP16_MAX
from apt.checkpoint.findings import Finding, error, warning

if TYPE_CHECKING:
    import torch

#: Magnitude of an activation that no sound model reaches in fp32.
EXPLODED: Final = 1e8
#: A unit whose largest activation is below this share of its layer's median unit never fires.
SILENT: Final = 1e-6
#: Share of silent units in a layer from which they are worth a word.
SILENT_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True)
class ModuleRange:
    """What one module's output was like.

    :param largest: largest finite magnitude of the output; ``largest_input`` alike.
    :param bad: NaN and infinite values of the output; ``bad_input`` alike, ``bad_weight`` of its own parameters.
    """

    name: str
    kind: str
    largest: float
    largest_input: float
    bad: int
    bad_input: int
    bad_weight: int
    values: int


def module_ranges(model: Any, ids: "torch.Tensor") -> list[ModuleRange]:
    """Run the model once and return the range of every leaf module's output, in order of execution.

    :param ids: int64 ``[rows, tokens]``.
    """
    import torch

    seen: list[ModuleRange] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            bad_input, largest_input, _ = _range(inputs)
            bad, largest, values = _range(output)
            bad_weight = sum(int((~torch.isfinite(p)).sum()) for p in module.parameters(recurse=False)) if bad else 0
            kind = type(module).__name__
            seen.append(ModuleRange(name, kind, largest, largest_input, bad, bad_input, bad_weight, values))

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(watch(name)).remove)
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    return seen


def range_findings(ranges: list[ModuleRange]) -> Iterator[Finding]:
    """Name the first module that makes a non-finite value, or the first whose output fp16 cannot hold."""
    first_bad = next((r for r in ranges if r.bad), None)
    if first_bad is not None:
        r = first_bad
        weights = f"its own weights hold {r.bad_weight} such values" if r.bad_weight else "its weights are finite"
        yield error(
            "first-non-finite", r.name,
            f"{r.kind}: {r.bad:,} of {r.values:,} outputs are NaN or infinite, "
            f"{f'{r.bad_input:,} of its inputs too' if r.bad_input else 'all inputs are finite'}; {weights}",
            "damaged weights" if r.bad_weight else "an overflow in this module, or in the attention before it",
            "restore this tensor from the last sound checkpoint" if r.bad_weight else "run it in fp32 or bf16",
        )  # fmt: skip
    large = next((r for r in ranges if r.largest > FP16_MAX), None)
    if large is not None:
        exploded = large.largest > EXPLODED
        yield (error if exploded else warning)(
            "exploding" if exploded else "fp16-activations", large.name,
            f"{large.kind}: output reaches {large.largest:.3g} (its inputs {large.largest_input:.3g}); "
            f"fp16 ends at {FP16_MAX:.0f}",
            "a scale that went wrong in this module or before it" if exploded else "large weights or norms upstream",
            "compare this layer's norms with its siblings': apt_model visualize MODEL" if exploded
            else "run and export it as bf16 or fp32, not as fp16",
        )  # fmt: skip


def silence_findings(model: Any, architecture: Architecture, ids: "torch.Tensor") -> Iterator[Finding]:
    """MLP neurons and attention heads that stay silent on every token.

    Looks at what enters the down projection (one column a neuron) and the output projection (head by head).
    """
    import torch

    d = architecture.dimensions(model.config.to_dict())
    peaks: dict[tuple[int, str], torch.Tensor] = {}

    def watch(layer: int, role: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            flat = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).abs().amax(0).float()
            peaks[layer, role] = flat if role == "down" else flat.reshape(d.heads, -1).amax(1)

        return hook

    with ExitStack() as hooks:
        for layer in range(d.layers):
            for role in ("o", "down"):
                module = model.get_submodule(architecture.layer_tensor(layer, role).removesuffix(".weight"))
                hooks.callback(module.register_forward_pre_hook(watch(layer, role)).remove)
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    for (layer, role), peak in sorted(peaks.items()):
        silent = (peak <= SILENT * float(peak.median())).nonzero().flatten().tolist()
        if len(silent) < max(1.0, SILENT_SHARE * len(peak)):
            continue
        what = "neurons" if role == "down" else "attention heads"
        yield warning(
            "dead-neurons" if role == "down" else "dead-heads",
            architecture.layer_tensor(layer, role).removesuffix(".weight"),
            f"{len(silent)} of {len(peak)} {what} are silent on all {ids.numel():,} tokens, the first is {silent[0]}",
            "zeroed by a mask, or dead since training", "apt_model prune MODEL -o OUT takes such parts out",
        )  # fmt: skip


def _range(value: Any) -> tuple[int, float, int]:
    """Non-finite values, largest finite magnitude and number of values of the floating-point tensors in ``value``."""
    import torch

    bad, largest, values = 0, 0.0, 0
    for tensor in value if isinstance(value, (tuple, list)) else (value,):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or not tensor.numel():
            continue
        magnitude = tensor.detach().abs()
        finite = torch.isfinite(magnitude)
        bad += int((~finite).sum())
        values += tensor.numel()
        largest = max(largest, float(torch.where(finite, magnitude, 0).max()))
    return bad, largest, values
