"""Damaged headers and JSON: each gives the right answer or one clear error, at once and in bounded memory.

    python benchmarks/fuzz_headers.py [--rounds 100000] [--seed 0]

Each round damages one file of a small model (safetensors header, index, config, tokenizer, tokenizer config,
generation config, GGUF, pickle) and reads its facts and sizes as `info` and `size` do, and looks for faults as `debug`
does, which must call faulty whatever `info` refuses. Damage: flipped, inserted,
removed and repeated bytes, truncation, numbers made absurd, deep nesting, keys given twice, byte order marks, NULs.
Anything but a result or an AptError fails, as does an answer that contradicts itself or what the safetensors library
reads from the same file. Bars: 50 ms of CPU a round (best of three tries, so that another process is not blamed), and
an address space of 256 MiB beyond what the process had at the start. The exit code is 1 when a bar is missed.
"""

import argparse
import json
import random
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
CPU_SECONDS: Final = 0.05
MEMORY_BYTES: Final = 256 << 20
#: What a number becomes: limits of integer types, and more digits than Python converts.
_NUMBERS: Final = (
    b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"4294967296", b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551616", b"1e400", b"1e18", b"-0", b"1.5", b"NaN", b"Infinity", b"null",
    b"true", b'"7"', b"[]", b"{}", b"9" * 400, b"9" * 6000,
)  # fmt: skip
_INTEGERS: Final = (0, 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass
class Target:
    """A file that is damaged, and what is read then.

    :param span: how much of the file is damaged: headers, not weights.
    """

    name: str
    path: Path
    model: Path
    sound: bytes
    span: int
    binary: bool


@dataclass
class Report:
    """What came of the rounds."""

    rounds: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    slowest: str = ""
    peak_growth_bytes: int = 0


def write_llama(directory: Path, shards: int) -> None:
    """Write a Llama of two layers with tokenizer, by hand; its weights are zeros."""
    directory.mkdir(parents=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
        "max_position_embeddings": 64, "tie_word_embeddings": True, "dtype": "float32", "eos_token_id": 1,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }  # fmt: skip
    layer = {
        "input_layernorm": [16], "post_attention_layernorm": [16], "self_attn.q_proj": [16, 16],
        "self_attn.k_proj": [8, 16], "self_attn.v_proj": [8, 16], "self_attn.o_proj": [16, 16],
        "mlp.gate_proj": [32, 16], "mlp.up_proj": [32, 16], "mlp.down_proj": [16, 32],
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": [40, 16], "model.norm.weight": [16]}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()}
    names, weight_map = list(shapes), {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names[shard::shards]:
            size = 4 * shapes[name][0] * (shapes[name][1] if len(shapes[name]) > 1 else 1)
            header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [offset, offset + size]}
            weight_map[name] = file
            offset += size
        raw = json.dumps(header).encode()
        (directory / file).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(offset))
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    vocab = {f"t{i}": i for i in range(38)}
    added = [{"id": 38, "content": "<s>", "special": True}, {"id": 39, "content": "</s>", "special": True}]
    tokenizer = {"added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": ["t 1", "t 2"]}}
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "</s>", "add_bos_token": True}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [39, 1], "bos_token_id": 38}))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_gguf(path: Path) -> int:
    """Write a small GGUF by hand; return the size of its header."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = {
        "block_count": 1, "context_length": 64, "embedding_length": 16, "feed_forward_length": 32,
        "attention.head_count": 4, "attention.head_count_kv": 2,
    }  # fmt: skip
    fields = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    fields += [text(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    tokens = b"".join(text(f"t{i}") for i in range(10))
    fields.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 10) + tokens)
    fields.append(text("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, 10) + bytes(40))
    fields.append(text("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, 9))
    table, offset = [], 0
    for name, shape in {"token_embd.weight": (16, 10), "blk.0.attn_q.weight": (16, 16)}.items():
        table.append(text(name) + struct.pack("<IQQIQ", 2, *shape, 0, offset))
        offset += 4 * shape[0] * shape[1]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(fields)) + b"".join(fields) + b"".join(table)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(offset))
    return len(header)


def write_pickle(path: Path) -> None:
    """Write a checkpoint of two tensors as torch wrote them before 1.6, without torch."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def tensor(name: str, rows: int) -> bytes:
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(name) + text("cpu") + b"K\x20tQ"
        size = b"K" + bytes([rows]) + b"K\x04\x86K\x04K\x01\x86"
        return text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"\x89}tR"

    state = b"\x80\x02}(" + tensor("model.embed_tokens.weight", 8) + tensor("model.norm.weight", 4) + b"u."
    magic = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
    path.write_bytes(magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + state + b"\x80\x02]." + bytes(64))


def make_targets(root: Path) -> list[Target]:
    """Write the models, and return the files that are damaged."""
    one, two = root / "one", root / "two"
    write_llama(one, 1)
    write_llama(two, 2)
    header = write_gguf(root / "m.gguf")
    write_pickle(root / "m.bin")

    def target(name: str, path: Path, model: Path, span: int | None = None, binary: bool = False) -> Target:
        sound = path.read_bytes()
        return Target(name, path, model, sound, min(span or len(sound), len(sound)), binary)

    weights = one / "model.safetensors"
    length = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    return [
        target("safetensors", weights, one, length),
        target("index", two / "model.safetensors.index.json", two),
        *(target(n, one / f"{n}.json", one) for n in ("config", "generation_config", "tokenizer", "tokenizer_config")),
        target("gguf", root / "m.gguf", root / "m.gguf", header, binary=True),
        target("pickle", root / "m.bin", root / "m.bin", binary=True),
    ]


def damage(target: Target, rng: random.Random) -> bytes:
    """Return the file's bytes with one to four kinds of damage."""
    head, rest = bytearray(target.sound[: target.span]), target.sound[target.span :]
    kinds = _BINARY if target.binary else _TEXTUAL
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(kinds)(head, rng)
    if target.name == "safetensors" and rng.random() < 0.7 and len(head) >= 8:
        head[:8] = (len(head) - 8).to_bytes(8, "little")  # else most damage is a wrong length and nothing more
    return bytes(head) + rest


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)


def _flip_bit(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 4, 40))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 8, 80))
    data[at:at] = data[at : at + size]


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    what = rng.choice((b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\\", b"\xed\xa0\x80", "🙂你".encode(), b"\\ud800"))
    at = rng.randrange(len(data) + 1)
    data[at:at] = what


def _mark(data: bytearray, rng: random.Random) -> None:
    data[:0] = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0\0"))


def _number(data: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb"-?\d+", data))
    if found:
        match = rng.choice(found)
        data[match.start() : match.end()] = rng.choice(_NUMBERS)


def _value(data: bytearray, rng: random.Random) -> None:
    """Put another kind of value behind a key."""
    found = list(re.finditer(rb'(?<=": )(?:"[^"]*"|true|false|null|[\d.]+)', data))
    if found:
        match = rng.choice(found)
        data[match.start() : match.end()] = rng.choice((*_NUMBERS, b'"' + b"x" * 5000 + b'"', b'[[1], {"a": []}]'))


def _nest(data: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb"[\d.]+", data))
    if found:
        match, depth = rng.choice(found), rng.choice((10, 500, 5000, 100_000))
        opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        data[match.start() : match.end()] = opening * depth + b"0" + closing * depth


def _twice(data: bytearray, rng: random.Random) -> None:
    """Give a key twice, with another value."""
    found = list(re.finditer(rb'"[^"]+": (?=[\d"\[])', data))
    if found:
        match = rng.choice(found)
        data[match.start() : match.start()] = match[0] + rng.choice(_NUMBERS) + b", "


def _integer(data: bytearray, rng: random.Random) -> None:
    """Overwrite four or eight bytes with an absurd number."""
    code = rng.choice(("<Q", "<I"))
    width = struct.calcsize(code)
    if len(data) >= width:
        at = rng.randrange(len(data) - width + 1)
        data[at : at + width] = struct.pack(code, rng.choice(_INTEGERS) & (2 ** (8 * width) - 1))


_BOTH: Final[tuple[Callable[[bytearray, random.Random], None], ...]] = (
    _flip, _flip, _flip_bit, _flip_bit, _remove, _repeat, _truncate, _insert, _mark,
)  # fmt: skip
_TEXTUAL: Final = (*_BOTH, _number, _number, _value, _value, _nest, _twice)
_BINARY: Final = (*_BOTH, _integer, _integer, _integer)


def read(target: Target) -> tuple[str, float]:
    """Read the damaged model as the commands do; return the outcome and the CPU seconds of the slowest.

    :raises AssertionError: when an answer contradicts itself, or `debug` finds nothing wrong where `info` refuses.
    """
    from apt.checkpoint.diagnosis import diagnose
    from apt.console.output import to_json

    if target.name == "pickle":  # `debug` reads none
        return _read(target)
    started = time.process_time()
    diagnosis = diagnose(str(target.model))
    to_json(diagnosis), diagnosis.tables()
    seconds = time.process_time() - started
    outcome, others = _read(target)
    assert outcome.startswith(("read", "size")) or diagnosis.verdict == "faulty", f"{outcome}, and debug finds no error"
    return outcome, max(seconds, others)


def _read(target: Target) -> tuple[str, float]:
    """The same for `info` and `size`."""
    from apt.checkpoint.facts import model_facts
    from apt.checkpoint.size_report import size_facts
    from apt.console.errors import AptError
    from apt.console.output import to_json

    started = time.process_time()
    try:
        facts = model_facts(str(target.model))
        text = to_json(facts)
        facts.tables()
    except AptError as error:
        seconds = time.process_time() - started
        assert 0 < len(str(error)) < 2_000, f"an error of {len(str(error))} characters: {str(error)[:100]}"
        return type(error).__name__, seconds
    seconds = time.process_time() - started
    json.loads(text)
    parts = facts.parameters_by_component
    assert not parts or sum(parts.values()) == facts.parameters, "components do not add up"
    assert sum(facts.parameters_by_dtype.values()) == facts.parameters, "dtypes do not add up"
    if target.name != "pickle":
        started = time.process_time()
        try:
            sizes = size_facts(str(target.model), memory_bytes=1 << 20)
            to_json(sizes), sizes.tables()
        except AptError as error:
            return f"size: {type(error).__name__}", time.process_time() - started
        seconds = max(seconds, time.process_time() - started)
        assert sum(g.size_bytes for g in sizes.groups) == sizes.tensor_bytes, "groups do not add up"
    if target.name == "safetensors":
        _agree_with_library(target.path, facts.parameters)
    return "read", seconds


def _agree_with_library(path: Path, parameters: int) -> None:
    """What is accepted here must be accepted by the safetensors library, with the same number of elements."""
    from math import prod

    from safetensors import safe_open

    with safe_open(path, "np") as file:
        found = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping
    assert found == parameters, f"the library counts {found} elements, here are {parameters}"


def fuzz(rounds: int, seed: int, root: Path) -> Report:
    """Damage and read ``rounds`` times; targets take turns."""
    rng = random.Random(seed)
    targets = make_targets(root)
    report = Report()
    for target in targets:
        outcome, _ = read(target)
        assert outcome == "read", f"{target.name}: the sound model gives {outcome}"
    before = _peak_bytes()
    for number in range(rounds):
        target = targets[number % len(targets)]
        content = damage(target, rng)
        target.path.write_bytes(content)
        try:
            outcome, seconds = read(target)
            for _ in range(2):
                if seconds > CPU_SECONDS:
                    seconds = min(seconds, read(target)[1])
        except Exception as error:
            outcome, seconds = "FAILED", 0.0
            report.failures.append(f"round {number}, {target.name}: {type(error).__name__}: {str(error)[:200]}")
        report.outcomes[f"{target.name}: {outcome}"] += 1
        if seconds > report.slowest_seconds:
            report.slowest_seconds, report.slowest = seconds, f"round {number}, {target.name}: {outcome}"
        target.path.write_bytes(target.sound)
        report.rounds += 1
    report.peak_growth_bytes = _peak_bytes() - before
    return report


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bound_memory() -> None:
    """Let allocations beyond the bar fail, where the system can."""
    import resource

    if not sys.platform.startswith("linux"):
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Fuzz and print counts, the slowest round and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import safetensors.numpy  # noqa: F401  # numpy's own address space is not what is bounded

    with tempfile.TemporaryDirectory() as temporary:
        bound_memory()
        report = fuzz(arguments.rounds, arguments.seed, Path(temporary))
    for outcome, count in sorted(report.outcomes.items()):
        print(f"{outcome:<44} {count:>8}")
    for failure in report.failures[:20]:
        print(failure)
    quick = report.slowest_seconds <= CPU_SECONDS
    print(f"\n{report.rounds:,} rounds, {len(report.failures)} failures")
    print(f"slowest: {report.slowest_seconds * 1000:.1f} ms of CPU, bar {CPU_SECONDS * 1000:.0f} ms ({report.slowest})")
    print(
        f"peak memory grew by {report.peak_growth_bytes / 2**20:.1f} MiB, bar {MEMORY_BYTES >> 20} MiB of address space"
    )
    return 0 if quick and not report.failures else 1


if __name__ == "__main__":
    sys.exit(main())
