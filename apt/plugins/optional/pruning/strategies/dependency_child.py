"""The process in which torch-pruning works: it hangs on some models, and then only this process is lost.

    python -m apt.plugins.optional.pruning.strategies.dependency_child JOB.json

Which channels hang together is found by torch-pruning's dependency graph (Fang et al., "DepGraph: Towards Any
Structural Pruning", 2023), and how much they count by its importance criteria. Widths, config and checks are ours: what
stays is a model that its own class builds from its config, or nothing.
"""

import copy
import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture.alignment import ALIGNMENTS, alignment
from apt.checkpoint.loading import quiet_transformers
from apt.console.errors import UnsupportedError, one_line
from apt.plugins.optional.pruning.structure.plans import SLACK, TOLERANCE

#: Keys by which configs state the width of a feed-forward layer.
_FF_KEYS: Final = ("intermediate_size", "d_ff", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim")
#: Keys by which convolutional networks state their channels; all of them are scaled alike.
_CHANNEL_KEYS: Final = ("embedding_size", "hidden_sizes")
#: Written weights are read again; so much may come from another order of sums.
_TOLERANCE: Final = 1e-5
#: Share of the tokens that are masked in the text that Taylor importance reads.
_MASKED: Final = 0.15

_Widths = Mapping[int, int]


def main(path: Path) -> None:
    """Do the job of a file and write what came of it beside it."""
    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        with quiet_transformers():
            told: dict[str, Any] = {"done": _prune(job)}
    except UnsupportedError as error:
        told = {"refused": error.message, "hint": error.hint}
    except Exception as error:  # of torch-pruning or of the model: told in one line by the parent
        told = {"refused": f"torch-pruning cannot cut it: {one_line(error)}", "hint": ""}
    aside = path.with_name("result.partial")
    aside.write_text(json.dumps(told), encoding="utf-8")
    aside.replace(path.with_name("result.json"))


def _prune(job: Mapping[str, Any]) -> dict[str, Any]:
    """Cut, rebuild, save, read again; :raises UnsupportedError: when any of it cannot be."""
    library = importlib.import_module("torch_pruning")  # it has no types
    torch.manual_seed(job["seed"])
    model = _class_of(job["model"]).from_pretrained(job["model"], dtype=torch.float32, local_files_only=True).eval()
    dense_parameters = model.num_parameters()
    example = _example(model)
    cut = _Cut(library, model, example)
    plan = _ff_plan(cut, job["ratio"]) or _channel_plan(cut, job["ratio"])
    if plan is None:
        raise UnsupportedError(
            f"{type(model).__name__}: its config states no width that can be cut",
            hint=f"known: {', '.join((*_FF_KEYS, *_CHANNEL_KEYS))}",
        )
    changes, widths, modules, share = plan
    told = {"removed_share": share, "parameters_before": dense_parameters, "class": type(model).__name__}
    told["sizes"] = {key: [getattr(model.config, key), value] for key, value in changes.items()}
    if job["output"] is None:
        with torch.device("meta"):
            return {**told, "parameters_after": _with(model, changes).num_parameters()}
    if job["importance"] == "taylor":
        _fisher_gradients(model, job)
    cut.make(modules, widths, job["importance"])
    rebuilt = _rebuilt(model, changes)
    wanted = _outputs(model, example)
    if _apart(_outputs(rebuilt, example), wanted) > _TOLERANCE:
        raise UnsupportedError(f"{type(model).__name__}: built from its new config it computes something else")
    stored = getattr(torch, job["dtype"])
    rebuilt.to(stored).save_pretrained(job["output"])
    again = type(model).from_pretrained(job["output"], dtype=torch.float32, local_files_only=True).eval()
    apart = _apart(_outputs(again, example), _outputs(rebuilt.float(), example))
    if apart > _TOLERANCE:
        raise UnsupportedError(f"{type(model).__name__}: read again it computes something else: {apart:.3g} apart")
    return {**told, "parameters_after": again.num_parameters(), "difference": apart}


def _class_of(path: str) -> Any:
    """Return the transformers class that a config names."""
    import transformers

    names = json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    found = getattr(transformers, str(names[0]), None)
    if found is None or not hasattr(found, "from_pretrained"):
        raise UnsupportedError(f"{path}: transformers has no class {names[0]!r}", hint="config.json: architectures")
    return found


def _example(model: Any) -> dict[str, Tensor]:
    """Return inputs of the kind that the model reads: two rows of ids, or two pictures."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", None) or 64
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.randn(2, config.num_channels, height, width, generator=generator)}
    if model.main_input_name != "input_ids":
        raise UnsupportedError(f"{type(model).__name__} reads {model.main_input_name}, not text or pictures")
    ids = torch.randint(2, config.vocab_size, (2, 16), generator=generator)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}


def _outputs(model: Any, example: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**example)[0].float()
    return found


def _apart(first: Tensor, second: Tensor) -> float:
    """Largest distance, relative to the largest value; infinite for other shapes."""
    if first.shape != second.shape:
        return math.inf
    return float((first - second).abs().max() / second.abs().max().clamp(min=1.0))


class _Cut:
    """A model and its dependency graph."""

    def __init__(self, library: Any, model: Any, example: Mapping[str, Tensor]) -> None:
        self.library, self.model = library, model
        self.graph = library.DependencyGraph().build_dependency(
            model,
            example_inputs=dict(example),
            forward_fn=lambda m, inputs: m(**inputs),
            output_transform=lambda o: o[0],
        )
        self.weights = sum(m.weight.numel() for _, m in self.layers())

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Yield the linear and convolution modules."""
        return ((n, m) for n, m in self.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))

    def group(self, module: nn.Module, channels: list[int]) -> Any:
        """Return everything that has to go with output channels of a module."""
        library = self.library
        linear = isinstance(module, nn.Linear)
        cut = library.prune_linear_out_channels if linear else library.prune_conv_out_channels
        return self.graph.get_pruning_group(module, cut, idxs=channels)

    def members(self, module: nn.Module) -> list[tuple[Any, bool]]:
        """Return the modules of a group, and of each whether its output channels go."""
        found = []
        for dependency, _ in self.group(module, [0]):
            found.append((dependency.target.module, self.graph.is_out_channel_pruning_fn(dependency.handler)))
        return found

    def make(self, modules: list[Any], widths: _Widths, importance: str) -> None:
        """Cut the channels of least importance until every width is what it should be."""
        library = self.library
        kinds = {
            "magnitude": library.importance.GroupMagnitudeImportance,
            "taylor": library.importance.GroupTaylorImportance,
        }
        judge = kinds[importance]()
        done: set[nn.Module] = set()
        for module in modules:
            if module in done:
                continue
            before = module.weight.shape[0]
            group = self.group(module, list(range(before)))
            done |= {m for m, out in self.members(module) if out}
            gone = judge(group).argsort(stable=True)[: before - widths[before]]
            if len(gone):
                self.group(module, sorted(gone.tolist())).prune()


_Plan = tuple[dict[str, Any], _Widths, list[Any], float]


def _ff_plan(cut: _Cut, ratio: float) -> _Plan | None:
    """Return how wide the feed-forward layers become; ``None`` where the config states no width for them."""
    config = cut.model.config
    key = next((k for k in _FF_KEYS if isinstance(getattr(config, k, None), int)), None)
    if key is None:
        return None
    width = getattr(config, key)
    hidden = getattr(config, "hidden_size", None) or getattr(config, "dim", None)
    if width == hidden:
        raise UnsupportedError(f"{key} equals the hidden size: the layers cannot be told apart by their width")
    modules: list[Any] = []
    seen: set[nn.Module] = set()
    channel = 0
    for _, module in cut.layers():
        if module.weight.shape[0] != width or module in seen:
            continue
        members = cut.members(module)
        seen |= {m for m, out in members if out}
        modules.append(module)
        channel += sum(m.weight.numel() // width for m, _ in members if isinstance(m, (nn.Linear, nn.Conv2d)))
    if not modules:
        raise UnsupportedError(f"{type(cut.model).__name__}: no linear layer has the width of {key}, {width}")
    for step in (a for a in ALIGNMENTS if a <= alignment(width)):
        left = int((width - (ratio - SLACK) * cut.weights / channel) // step * step)
        share = (width - left) * channel / cut.weights
        if step <= left < width and share - ratio <= TOLERANCE:
            changes = {k: left for k in _FF_KEYS if getattr(config, k, None) == width}
            return changes, {width: left}, modules, share
    most = (width - alignment(width)) * channel / cut.weights
    raise UnsupportedError(
        f"{ratio:.1%} cannot be cut from {type(cut.model).__name__}: its feed-forward layers, which alone are "
        f"cut, give {channel * alignment(width) / cut.weights:.1%} to {most:.1%}",
        hint="another --ratio",
    )


def _channel_plan(cut: _Cut, ratio: float) -> _Plan | None:
    """Return how wide the convolutions become, all by one factor; ``None`` where the config states no channels."""
    config = cut.model.config
    if not all(hasattr(config, key) for key in _CHANNEL_KEYS):
        return None
    layers = [m for _, m in cut.layers()]
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    if any(m.groups != 1 for m in convolutions):
        raise UnsupportedError(f"{type(cut.model).__name__} has grouped convolutions, which are not cut")
    widths = sorted({m.weight.shape[0] for m in convolutions})
    unit = math.gcd(*widths)
    shares = {}
    for part in range(1, unit):
        new = {w: w * part // unit for w in widths}
        left = sum(
            m.weight[0, 0].numel()
            * new.get(m.weight.shape[0], m.weight.shape[0])
            * new.get(m.weight.shape[1], m.weight.shape[1])
            for m in layers
        )
        shares[part] = 1.0 - left / cut.weights
    fitting = {p: s for p, s in shares.items() if s - ratio >= -SLACK}
    part = max(fitting, default=0)
    if not part or fitting[part] - ratio > 2 * TOLERANCE:
        near = sorted(shares.values(), key=lambda s: abs(s - ratio))[:3]
        raise UnsupportedError(
            f"no factor of all channels removes {ratio:.1%} from {type(cut.model).__name__}",
            hint=f"nearest: {', '.join(f'{s:.1%}' for s in sorted(near))}",
        )
    new = {w: w * part // unit for w in widths}
    changes: dict[str, Any] = {"embedding_size": new[config.embedding_size]}
    changes["hidden_sizes"] = [new[w] for w in config.hidden_sizes]
    return changes, new, list(convolutions), shares[part]


def _with(model: Any, changes: Mapping[str, Any]) -> Any:
    """Return a new model of the same class, of a config with the new widths."""
    config = copy.deepcopy(model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    return type(model)(config)


def _rebuilt(model: Any, changes: Mapping[str, Any]) -> Any:
    """Return such a model with the cut model's tensors.

    :raises UnsupportedError: when a tensor has not the shape that the config asks for.
    """
    fresh = _with(model, changes)
    shapes = {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if shapes.get(name) != tuple(tensor.shape):
            raise UnsupportedError(
                f"{type(model).__name__}: its config cannot say what was cut: {name} is {list(tensor.shape)}, "
                f"the config makes it {list(shapes.get(name, ()))}"
            )
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def _fisher_gradients(model: Any, job: Mapping[str, Any]) -> None:
    """Leave the root of the summed squares of single rows' gradients, of guessing masked tokens, in ``grad``.

    The gradient of the mean loss vanishes at a trained model; torch-pruning's Taylor criterion takes whatever is there.

    :raises UnsupportedError: for a model that guesses no masked tokens.
    """
    import numpy as np

    if not type(model).__name__.endswith("ForMaskedLM") or job["rows"] is None:
        raise UnsupportedError("importance=taylor is for models that guess masked tokens", hint="importance=magnitude")
    generator = torch.Generator().manual_seed(job["seed"])
    squares = {p: torch.zeros_like(p) for p in model.parameters()}
    for row in torch.as_tensor(np.load(job["rows"])["calibration"]).long():
        hidden = torch.rand(row.shape, generator=generator) < _MASKED
        hidden[len(row) // 2] = True
        model.zero_grad()
        ids = row.masked_fill(hidden, job["mask_token"])
        model(input_ids=ids[None], labels=row.masked_fill(~hidden, -100)[None]).loss.backward()
        for parameter, total in squares.items():
            if parameter.grad is not None:
                total += parameter.grad.square()
    for parameter, total in squares.items():
        parameter.grad = total.sqrt()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
