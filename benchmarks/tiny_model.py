"""The embedded model against compressors: held-out bits per byte of ``tiny``, ``xz -9`` and a 5-gram byte model.

    python benchmarks/tiny_model.py [--samples] [--json]

Peers: ``xz -9`` on the held-out text alone, and the same primed with the training text (the growth of the archive when
the held-out text is appended); an interpolated 5-gram model of bytes (Witten-Bell smoothing: Witten & Bell 1991, method
C) counted on the same training text. All score the same frozen held-out bytes. The training text is that of the running
interpreter; the figures in the card are of the version that it names.
"""

import argparse
import json
import lzma
import math
from pathlib import Path

import numpy as np

from apt.assets.corpus import stdlib_texts

ASSETS = Path(__file__).parent.parent / "apt" / "assets" / "tiny"
PROMPTS = ("def ", "import os\n", "class Queue:\n    def ", '"""Return ', "    for item in ")


def xz_bits_per_byte(train: bytes, heldout: bytes) -> tuple[float, float]:
    """Return bits per byte of ``xz -9`` alone and primed with the training text."""
    alone = len(lzma.compress(heldout, preset=9))
    primed = len(lzma.compress(train + heldout, preset=9)) - len(lzma.compress(train, preset=9))
    return 8 * alone / len(heldout), 8 * primed / len(heldout)


def ngram_keys(data: np.ndarray, order: int) -> np.ndarray:
    """Return the integers that stand for the ``order`` bytes ending at each position from ``order - 1`` on."""
    keys = np.zeros(len(data) - order + 1, dtype=np.int64)
    for offset in range(order):
        keys = keys * 256 + data[offset : len(data) - order + 1 + offset]
    return keys


def count_of(keys: np.ndarray, table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Look up counts of keys in a sorted table; 0 where absent."""
    position = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[position] == keys, counts[position], 0)


def ngram_bits_per_byte(train: bytes, heldout: bytes, order: int = 5) -> float:
    """Return bits per byte of the interpolated byte model of that order."""
    counted = np.frombuffer(train, dtype=np.uint8).astype(np.int64)
    scored = np.frombuffer(heldout, dtype=np.uint8).astype(np.int64)
    probability = np.full(len(scored), 1 / 256)
    for n in range(1, order + 1):
        grams, counts = np.unique(ngram_keys(counted, n), return_counts=True)
        contexts, first = np.unique(grams // 256, return_index=True)
        totals = np.add.reduceat(counts, first)
        types = np.diff([*first, len(grams)])
        keys = ngram_keys(scored, n)
        seen, total = count_of(keys, grams, counts), count_of(keys // 256, contexts, totals)
        kinds = count_of(keys // 256, contexts, types)
        lower = probability[n - 1 :]
        updated = np.where(total > 0, (seen + kinds * lower) / np.maximum(total + kinds, 1), lower)
        probability[n - 1 :] = updated
    return float(-np.log2(probability).mean())


def tiny_bits_per_byte(heldout: str) -> float:
    """Return bits per byte of the embedded model as it is shipped (bf16 weights, fp32 arithmetic)."""
    import torch

    from apt.assets.train_tiny import encode_stream, nll_bits_per_byte
    from apt.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(ASSETS)
    model, tokenizer = checkpoint.load(torch.float32), checkpoint.tokenizer()
    ids = encode_stream(tokenizer, [heldout])[1:]
    return nll_bits_per_byte(model, ids, len(heldout.encode()), checkpoint.config["max_position_embeddings"])


def samples(seed: int = 1, tokens: int = 96) -> list[str]:
    """Return one sample a prompt, unedited: temperature 0.7, fixed seed."""
    import torch

    from apt.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(ASSETS)
    model, tokenizer = checkpoint.load(torch.float32), checkpoint.tokenizer()
    torch.manual_seed(seed)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=tokens, do_sample=True, temperature=0.7, top_k=0, pad_token_id=0)
        texts.append(tokenizer.decode(out[0, 1:]))
    return texts


def main() -> None:
    """Print the figures, the bar (beat both peers) and the ratio to the best peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.samples:
        print("\n\n---\n\n".join(samples()))
        return
    train = "".join(text for _, text in stdlib_texts("train")).encode()
    heldout = (ASSETS / "heldout.txt").read_text(encoding="utf-8")
    alone, primed = xz_bits_per_byte(train, heldout.encode())
    figures = {
        "tiny": tiny_bits_per_byte(heldout),
        "xz_9_alone": alone,
        "xz_9_primed": primed,
        "5gram_bytes": ngram_bits_per_byte(train, heldout.encode()),
    }
    best = min(v for k, v in figures.items() if k != "tiny")
    figures["ratio_to_best_peer"] = figures["tiny"] / best
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>20} {value:.4f}" for name, value in figures.items()))
    if not math.isfinite(figures["tiny"]) or figures["tiny"] >= best:
        raise SystemExit("tiny does not beat the compressors")


if __name__ == "__main__":
    main()
