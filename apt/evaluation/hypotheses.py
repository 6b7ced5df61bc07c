"""What a checkpoint may have wrong although every shape is legal, as changes that can be tried on the loaded model.

A wrong rotary base, exchanged layers, a transposed square matrix: none of these shows in shapes or single values. Each
is a hypothesis here: a change that would mend it, made in memory and undone. :mod:`apt.evaluation.deep` lets the model
judge: the change that makes a text clearly likelier names the fault.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from apt.checkpoint.architecture import Architecture, Dimensions

#: Rotary bases that model families use (Llama, Llama 3, Qwen and Mistral, Gemma).
COMMON_BASES: Final = (1e4, 5e5, 1e6)
#: Factors on the base that are tried beside them.
BASE_FACTORS: Final = (0.01, 0.1, 10.0, 100.0)
#: Factors on the number of heads.
HEAD_FACTORS: Final = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
ACTIVATIONS: Final = ("silu", "gelu", "gelu_pytorch_tanh", "relu")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A fault that may be there.

    :param code: of the finding that names it.
    :param where: key or tensor.
    :param told: what is wrong if the hypothesis holds, as evidence begins.
    :param mend: what then mends the files.
    :param changed: context manager that yields a model with the fault mended; on leaving, the model is as it was.
    """

    code: str
    where: str
    told: str
    cause: str
    mend: str
    changed: Callable[[], AbstractContextManager[Any]]


def hypotheses(model: Any, architecture: Architecture) -> Iterator[Hypothesis]:
    """Yield every hypothesis, the cheap and frequent ones first: the caller may stop."""
    d = architecture.dimensions(model.config.to_dict())
    yield from _rotary_bases(model)
    yield from _head_counts(model, architecture, d)
    yield from _rotary_layouts(model, architecture, d)
    yield from _exchanged_roles(model, architecture, d)
    yield from _activations(model)
    yield from _layer_pairs(model, architecture, [(i, i + 1) for i in range(d.layers - 1)])
    yield from _transposed(model, architecture, d)
    far = [(i, j) for i, j in itertools.combinations(range(d.layers), 2) if j > i + 1]
    yield from _layer_pairs(model, architecture, sorted(far, key=lambda pair: pair[1] - pair[0]))


def _rotary_bases(model: Any) -> Iterator[Hypothesis]:
    now = sorted({float(p["rope_theta"]) for p in _rope_settings(model.config) if p.get("rope_theta")})
    if not now or not list(_rotary_modules(model)):
        return
    base = now[-1]
    for other in sorted({*COMMON_BASES, *(base * f for f in BASE_FACTORS)} - {base}):

        @contextmanager
        def changed(factor: float = other / base) -> Iterator[Any]:
            config = copy.deepcopy(model.config)
            for settings in _rope_settings(config):
                settings["rope_theta"] = float(settings["rope_theta"]) * factor
            places = [(parent, name, module) for parent, name, module in _rotary_modules(model)]
            for parent, name, module in places:
                setattr(parent, name, _rebuilt(module, config, model))
            try:
                yield model
            finally:
                for parent, name, module in places:
                    setattr(parent, name, module)

        yield Hypothesis(
            "rotary-base", "config.json: rope_theta", f"is {base:g}, the weights fit {other:g}",
            "config.json was written for another model, or rope_theta was lost and a default took its place",
            f'set "rope_theta" to {other:g} (or what the original config says)', changed,
        )  # fmt: skip


def _head_counts(model: Any, architecture: Architecture, d: Dimensions) -> Iterator[Hypothesis]:
    heads_key, kv_key = architecture.key("num_attention_heads"), architecture.key("num_key_value_heads")
    for factor in HEAD_FACTORS:
        heads, kv_heads, head_dim = d.heads * factor, d.kv_heads * factor, d.head_dim / factor
        if heads % 1 or kv_heads % 1 or head_dim % 2 or (architecture.heads_divide_hidden and d.hidden % heads):
            continue
        changes = {heads_key: int(heads), kv_key: int(kv_heads)}
        if "head_dim" in model.config.to_dict():
            changes["head_dim"] = int(head_dim)

        @contextmanager
        def changed(changes: Mapping[str, int] = changes) -> Iterator[Any]:
            yield variant(model, changes)

        yield Hypothesis(
            "head-count", f"config.json: {heads_key}",
            f"is {d.heads} (head size {d.head_dim}), the weights fit {int(heads)} (head size {int(head_dim)})",
            "the number of heads was edited or guessed; the shapes are the same",
            "set " + ", ".join(f'"{k}" to {v}' for k, v in changes.items()), changed,
        )  # fmt: skip


def _rotary_layouts(model: Any, architecture: Architecture, d: Dimensions) -> Iterator[Hypothesis]:
    """Rows of q and k in pairs (Meta's and GPT-J's layout) where transformers wants halves, and the reverse."""
    import torch

    if not list(_rotary_modules(model)) or not {"q", "k"} <= set(architecture.roles):
        return
    paired = torch.arange(d.head_dim).reshape(2, -1).T.flatten()  # 0, n/2, 1, n/2 + 1, …
    for told, order in (("interleaved pairs", paired.argsort()), ("halves, twice permuted", paired)):

        @contextmanager
        def changed(order: "torch.Tensor" = order) -> Iterator[Any]:
            parameters = [p for role in "qk" for p in _parameters(model, architecture, d, role)]
            kept = [p.data for p in parameters]
            for p in parameters:
                p.data = p.data.reshape(-1, d.head_dim, *p.shape[1:])[:, order].reshape(p.shape)
            try:
                yield model
            finally:
                for p, data in zip(parameters, kept, strict=True):
                    p.data = data

        yield Hypothesis(
            "rotary-layout", "q and k of all layers", f"rows lie in {told}",
            "a converter that permutes the rotary dimensions for another runtime, or forgot to",
            "convert the weights again with a converter for transformers", changed,
        )  # fmt: skip


def _exchanged_roles(model: Any, architecture: Architecture, d: Dimensions) -> Iterator[Hypothesis]:
    """Two matrices of the same shape, one in the other's place in every layer."""
    for a, b in (("gate", "up"), ("k", "v"), ("q", "o"), ("attention_norm", "mlp_norm")):
        if not {a, b} <= set(architecture.roles):
            continue
        first = [model.get_parameter(architecture.layer_tensor(i, a)) for i in range(d.layers)]
        second = [model.get_parameter(architecture.layer_tensor(i, b)) for i in range(d.layers)]
        if any(x.shape != y.shape for x, y in zip(first, second, strict=True)):
            continue
        pairs = list(zip(first, second, strict=True))
        yield Hypothesis(
            "exchanged-tensors", f"{architecture.roles[a]} and {architecture.roles[b]}",
            "stand in one another's place in all layers", "a converter that mixed up two names",
            "convert the weights again", lambda pairs=pairs: _exchanged(model, pairs),  # type: ignore[misc]
        )  # fmt: skip


def _activations(model: Any) -> Iterator[Hypothesis]:
    from transformers.activations import ACT2FN

    key = next((k for k in ("hidden_activation", "hidden_act", "activation_function") if hasattr(model.config, k)), "")
    now = getattr(model.config, key, None) if key else None
    mlps = [m for m in model.modules() if any(True for _ in m.parameters())]  # an activation has none of its own
    places = [(m, n) for m in mlps for n in ("act_fn", "activation_fn", "act") if hasattr(m, n)]
    if not isinstance(now, str) or not places:
        return
    for other in ACTIVATIONS:
        if other == now or {other, now} <= {"gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"}:
            continue  # those differ by less than can be told apart

        @contextmanager
        def changed(other: str = other) -> Iterator[Any]:
            kept = [(module, name, getattr(module, name)) for module, name in places]
            for module, name, _ in kept:
                setattr(module, name, ACT2FN[other])
            try:
                yield model
            finally:
                for module, name, function in kept:
                    setattr(module, name, function)

        yield Hypothesis(
            "activation", f"config.json: {key}", f"is {now!r}, the weights fit {other!r}",
            "config.json was written for another model", f'set "{key}" to "{other}"', changed,
        )  # fmt: skip


def _layer_pairs(model: Any, architecture: Architecture, pairs: list[tuple[int, int]]) -> Iterator[Hypothesis]:
    layers = [
        dict(model.get_submodule(architecture.layer_prefix.format(i).rstrip(".")).named_parameters())
        for i in range(max((j for _, j in pairs), default=-1) + 1)
    ]
    for i, j in pairs:
        if layers[i].keys() != layers[j].keys() or any(layers[i][n].shape != layers[j][n].shape for n in layers[i]):
            continue
        both = [(layers[i][n], layers[j][n]) for n in layers[i]]
        yield Hypothesis(
            "swapped-layers", f"layers {i} and {j}", "stand in one another's place",
            "a merge or a conversion that sorted layer names as text, or renamed them wrongly",
            "exchange the two layers' tensors, or convert the model again",
            lambda both=both: _exchanged(model, both),  # type: ignore[misc]
        )  # fmt: skip


def _transposed(model: Any, architecture: Architecture, d: Dimensions) -> Iterator[Hypothesis]:
    for role in ("q", "o", "k", "v", "gate", "up", "down"):
        if role not in architecture.roles:
            continue
        for layer in range(d.layers):
            name = architecture.layer_tensor(layer, role)
            parameter = model.get_parameter(name)
            if parameter.ndim != 2 or parameter.shape[0] != parameter.shape[1]:
                continue

            @contextmanager
            def changed(parameter: Any = parameter) -> Iterator[Any]:
                kept = parameter.data
                parameter.data = kept.T.contiguous()
                try:
                    yield model
                finally:
                    parameter.data = kept

            yield Hypothesis(
                "transposed", name, "is transposed: its shape is square, so that nothing else shows it",
                "a converter that transposed it, or forgot to", "transpose it, or convert the model again", changed,
            )  # fmt: skip


@contextmanager
def _exchanged(model: Any, pairs: list[tuple[Any, Any]]) -> Iterator[Any]:
    """Exchange the data of pairs of parameters."""
    for a, b in pairs:
        a.data, b.data = b.data, a.data
    try:
        yield model
    finally:
        for a, b in pairs:
            a.data, b.data = b.data, a.data


def variant(model: Any, changes: Mapping[str, Any]) -> Any:
    """Return a model of a changed config that shares the weights of ``model``; nothing is copied.

    :raises ValueError: when the config is refused or asks for other shapes.
    """
    import torch

    config = copy.deepcopy(model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters that have no element in an odd config
            other = type(model)(config)
        other.load_state_dict(model.state_dict(), assign=True)
    except Exception as problem:  # config classes and models refuse a size by classes of their own
        raise ValueError(str(problem)) from problem
    for parent, name, module in list(_rotary_modules(other)):
        setattr(parent, name, _rebuilt(module, config, model))
    buffers = dict(model.named_buffers())
    for name, buffer in list(other.named_buffers()):
        if buffer.is_meta:
            parent, _, last = name.rpartition(".")
            other.get_submodule(parent).register_buffer(last, buffers[name], persistent=False)
    return other.eval()


def _rotary_modules(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield parent, name and module of each rotary embedding that is built from the config."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if "RotaryEmbedding" in type(module).__name__ and hasattr(module, "config"):
                yield parent, name, module


def _rebuilt(module: Any, config: Any, model: Any) -> Any:
    return type(module)(config=config).to(model.device).eval()


def _rope_settings(config: Any) -> list[dict[str, Any]]:
    """The dictionaries that hold a ``rope_theta``: one, or one for each type of layer."""
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict):
        return []
    inner = [v for v in found.values() if isinstance(v, dict)]
    return [p for p in (inner or [found]) if isinstance(p.get("rope_theta"), (int, float))]


def _parameters(model: Any, architecture: Architecture, d: Dimensions, role: str) -> Iterator[Any]:
    """Yield a role's weights of all layers, and the biases that are there."""
    names = dict(model.named_parameters())
    for layer in range(d.layers):
        yield names[architecture.layer_tensor(layer, role)]
        bias = names.get(architecture.layer_tensor(layer, role, "bias"))
        if bias is not None:
            yield bias
