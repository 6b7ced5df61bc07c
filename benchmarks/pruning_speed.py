"""Speed of a structured cut: a quarter of the linear weights of a Llama of about 125 million parameters goes.

    python benchmarks/pruning_speed.py [--threads N] [--seconds 120]

The model (12 layers, hidden 768, 12 heads with 4 KV groups, ff 2816, vocabulary 32,000 tied to the head, float32,
random values: speed does not depend on them) is made in a temporary directory and cut by the operation ``prune``:
``structured``, effort light, ratio 0.25. Dense and cut model are then measured in alternating rounds in this process,
each told as tokens per second (median [slowest, fastest]) with the ratio's 95 % interval over the rounds. Bar: the cut
model writes tokens >= 1.2 times as fast as the dense one, by the median. The exit code is 1 when it is missed.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
BAR: Final = 1.2
RATIO: Final = 0.25

SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 768, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make(directory: Path) -> None:
    """Write the dense checkpoint and the rows of random tokens that it is calibrated on."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from apt.evaluation.texts import rows_from_ids, save_rows

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(directory / "dense")
    ids = torch.randint(3, SHAPE["vocab_size"], (24, 128))
    splits = {"calibration": ids[:16], "heldout": ids[16:]}
    save_rows({name: rows_from_ids(some, source="random") for name, some in splits.items()}, directory / "rows.npz")


def main() -> int:
    """Make, cut, measure, and hold the ratio against the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="that torch computes with; its own choice when absent")
    parser.add_argument("--seconds", type=float, default=120.0, help="that the rounds may take, about")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.speed import compare_speed
    from apt.plugins.optional.pruning.operation import prune
    from apt.plugins.optional.pruning.options import PruneOptions
    from apt.plugins.optional.pruning.result import PruneResult

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make(directory)
        told = prune(
            PruneOptions(
                model=str(directory / "dense"), output=directory / "cut", strategy="structured", ratio=RATIO,
                calibration=str(directory / "rows.npz"), effort="light", tokens=2048, speed=False,
            )
        )  # fmt: skip
        assert isinstance(told, PruneResult)
        dense, cut = (Checkpoint.open(directory / n).load(dtype=torch.float32) for n in ("dense", "cut"))
        speed = compare_speed(dense, cut, seconds=arguments.seconds)
    first, second = speed.first, speed.second
    print(f"{told.plan}: {told.removed_share:.2%} of the linear weights removed")
    print(f"parameters {told.parameters_before:,} -> {told.parameters_after:,}")
    print(
        f"{first.threads} threads, {first.dtype}, {first.prompt_tokens} + {first.new_tokens} tokens, "
        f"{first.repeats} rounds in turn"
    )
    for what, before, after, ratio in (
        ("prefill", first.prefill, second.prefill, speed.prefill_ratio),
        ("decode", first.decode, second.decode, speed.decode_ratio),
    ):
        print(f"{what:8} tokens/s: dense {before.format()}, cut {after.format()}, ratio {ratio.format(3)}")
    met = speed.decode_ratio.value >= BAR
    print(f"decode >= {BAR}: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
