"""Settings that contradict themselves or what is stored: rotary, generation, class names, quantised weights."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from apt.checkpoint.architecture import ARCHITECTURES
from apt.checkpoint.findings import Finding, error, note, warning
from apt.checkpoint.reader import Checkpoint, read_json
from apt.console.errors import UnsupportedError, shown

#: Integer and 8-bit dtypes: a matrix of one of them is packed or quantised.
_PACKED: Final = frozenset({"I8", "U8", "I32", "U32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"})
#: Largest epsilon of a norm that any known family uses is 1e-5; beyond this one it changes what the norm does.
_LARGE_EPSILON: Final = 1e-3


def settings_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Look at ``config.json`` and ``generation_config.json`` alone, and at the dtypes of the tensors."""
    yield from quantisation_findings(checkpoint)
    yield from _mixed_dtypes(checkpoint)
    if str(checkpoint.config.get("model_type")) in ARCHITECTURES:
        yield from _class_name(checkpoint.config)
    yield from _norm_epsilon(checkpoint.config)
    yield from _rope(checkpoint.config)
    yield from _experts(checkpoint.config)
    generation = checkpoint.path / "generation_config.json"
    if generation.is_file():
        yield from generation_findings(read_json(generation))


def packed_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the matrices whose dtype says that they are quantised, when the config does not say so."""
    if checkpoint.config.get("quantization_config"):
        return []
    return [n for n, t in checkpoint.tensors.items() if t.dtype in _PACKED and len(t.shape) > 1]


def quantisation_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Quantised weights under a config that calls them floating-point."""
    packed = packed_tensors(checkpoint)
    if packed:
        stated = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "no dtype"
        dtypes = ", ".join(sorted({checkpoint.tensors[n].dtype for n in packed}))
        yield error(
            "quantised-unlabelled", packed[0],
            f"{len(packed)} matrices are stored as {dtypes}; config.json says {stated} and has no quantization_config",
            "the weights of a quantised model beside the config of the original",
            "copy the quantised model's own config.json, or the original weights",
        )  # fmt: skip


def _mixed_dtypes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """A matrix whose dtype differs from that of the same part in the other layers."""
    try:
        architecture = checkpoint.architecture
    except UnsupportedError:
        return
    roles: dict[str, dict[str, str]] = defaultdict(dict)
    for name, tensor in checkpoint.tensors.items():
        role = architecture.role_of(name)
        if role is not None and name.endswith(".weight"):
            roles[role][name] = tensor.dtype
    odd = []
    for dtypes in roles.values():
        usual = Counter(dtypes.values()).most_common(1)[0]
        odd += [(n, d, usual[0]) for n, d in dtypes.items() if d != usual[0] and usual[1] > len(dtypes) // 2]
    if odd:
        name, own, usual_dtype = min(odd)
        yield warning(
            "mixed-dtype", name, f"is {own}, the same matrix of the other layers is {usual_dtype}"
            + (f" ({len(odd)} tensors differ so)" if len(odd) > 1 else ""),
            "layers of two models were put together, or a conversion stopped halfway", "convert the model again",
        )  # fmt: skip


def _class_name(config: Mapping[str, Any]) -> Iterator[Finding]:
    """What chooses the class: transformers goes by model_type, llama.cpp and vLLM by architectures."""
    named, family = config.get("architectures"), config.get("model_type")
    if not isinstance(named, list) or not named or not isinstance(named[0], str) or not isinstance(family, str):
        return
    stem = named[0].partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model").lower()
    plain = family.replace("_", "").replace("-", "").lower()
    if stem and not plain.startswith(stem) and not stem.startswith(plain):
        yield warning(
            "class-name", "config.json: architectures", f"is {named[0]}, model_type is {family}",
            "one of the two was edited: transformers goes by model_type, llama.cpp and vLLM by architectures",
            "copy both from the original config",
        )  # fmt: skip


def _norm_epsilon(config: Mapping[str, Any]) -> Iterator[Finding]:
    for key in ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"):
        value = config.get(key)
        if value is None:
            continue
        sound = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not sound or not 0 < value <= _LARGE_EPSILON:
            yield (warning if sound else error)(
                "norm-epsilon", f"config.json: {key}", f"is {shown(value)}; models use 1e-5 or 1e-6",
                "the config was edited", f'set "{key}" to the value of the original',
            )  # fmt: skip


def _experts(config: Mapping[str, Any]) -> Iterator[Finding]:
    counts = (config.get(k) for k in ("num_local_experts", "num_experts", "n_routed_experts"))
    experts, chosen = next((n for n in counts if type(n) is int), None), config.get("num_experts_per_tok")
    if experts is not None and type(chosen) is int and not 1 <= chosen <= experts:
        yield error(
            "experts", "config.json: num_experts_per_tok", f"is {chosen} of {experts} experts",
            "one of the two was edited", "copy both from the original config",
        )  # fmt: skip


def _rope(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Rotary settings that cannot be meant: the base, and factors of a longer context."""
    places = {"rope_theta": config}
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if isinstance(value, dict):
            nested = {f"{key}.{k}": v for k, v in value.items() if isinstance(v, dict)}
            places |= nested or {key: value}
    for where, settings in places.items():
        theta, factor = settings.get("rope_theta"), settings.get("factor")
        if theta is not None and (not isinstance(theta, (int, float)) or isinstance(theta, bool) or theta <= 1):
            yield error(
                "rope-settings", f"config.json: {where}",
                f"the base (rope_theta) is {shown(theta)}, models use 10000 or more",
                "the config was edited", "copy the rotary settings of the original config",
            )  # fmt: skip
        if factor is not None and (not isinstance(factor, (int, float)) or factor < 1):
            yield error(
                "rope-settings", f"config.json: {where}",
                f"the factor of the context is {shown(factor)}, it must be 1 or more",
                "the config was edited", "copy the rotary settings of the original config",
            )  # fmt: skip


def generation_findings(generation: Mapping[str, Any]) -> Iterator[Finding]:
    """Generation settings that no text can be written with, and those that have no effect."""
    where = "generation_config.json"
    legal: dict[str, tuple[Callable[[Any], bool], str]] = {
        "temperature": (lambda v: v > 0, "above 0"), "top_p": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
        "top_k": (lambda v: v >= 0, "0 or more"), "min_p": (lambda v: 0 <= v <= 1, "between 0 and 1"),
        "repetition_penalty": (lambda v: v > 0, "above 0"), "num_beams": (lambda v: v >= 1, "1 or more"),
        "max_new_tokens": (lambda v: v >= 1, "1 or more"), "max_length": (lambda v: v >= 1, "1 or more"),
    }  # fmt: skip
    sampled = generation.get("do_sample")
    for key, (sound, range_text) in legal.items():
        value = generation.get(key)
        if value is None or (key == "temperature" and value == 0 and not sampled):
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not sound(value):
            yield error(
                "generation-settings", f"{where}: {key}", f"is {shown(value)}, it must be {range_text}",
                "the file was edited", f'set "{key}" as the original has it, or remove it',
            )  # fmt: skip
    low, high = generation.get("min_length"), generation.get("max_length")
    if type(low) is int and type(high) is int and low > high:
        yield error(
            "generation-settings", f"{where}: min_length", f"is {low}, more than max_length ({high})",
            "the file was edited", "make it smaller, or remove both",
        )  # fmt: skip
    unused = [k for k, plain in (("temperature", 1.0), ("top_p", 1.0)) if generation.get(k) not in (None, plain)]
    if sampled is False and unused:
        yield note(
            "generation-settings", f"{where}: {unused[0]}", "has no effect, since do_sample is false",
            "settings of sampling that was turned off", 'set "do_sample" to true if sampling is meant',
        )  # fmt: skip
