"""Make the embedded model: tokenizer, training, card figures.

Run as ``python -m apt.assets.train_tiny --recipe apt/assets/tiny/recipe.yaml --run-dir DIR``. A stopped run
goes on from its last checkpoint when the command is given again. The result (``DIR/model``) is a stock
checkpoint in bf16; ``DIR/log.jsonl`` holds the curve.

Optimisers: Muon (K. Jordan, 2024) for the matrices of the layers, AdamW for embedding and norms.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.assets.corpus import stdlib_texts

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"


def build_tokenizer(texts: list[str], vocab_size: int, window: int) -> "PreTrainedTokenizerFast":
    """Train the byte-level BPE on ``texts``; every encoded text begins with the end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, 0)]
    )
    make: Any = PreTrainedTokenizerFast  # not annotated in transformers
    return make(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=window)


def encode_stream(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> "torch.Tensor":
    """Join the texts to one id stream of shape ``[tokens]``, an end-of-text id before each."""
    import torch

    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def nll_bits_per_byte(model: "LlamaForCausalLM", ids: "torch.Tensor", n_bytes: int, window: int) -> float:
    """Bits per byte of a stream cut in rows of ``window`` tokens, each row after a BOS of its own.

    Every token of the stream is scored once (its row's BOS is not), so the figure is comparable with a
    compressor's.
    """
    import torch
    from torch.nn.functional import cross_entropy

    bos, total = model.config.bos_token_id, 0.0
    with torch.no_grad():
        for start in range(0, len(ids), window - 1):
            row = torch.cat([torch.tensor([bos]), ids[start : start + window - 1]])[None]
            logits = model(input_ids=row).logits[0, :-1].float()
            total += float(cross_entropy(logits, row[0, 1:], reduction="sum"))
    return total / math.log(2) / n_bytes


def learning_rate_factor(step: int, progress: float, settings: dict[str, Any]) -> float:
    """Warm-up by steps, then constant, then linear to zero over the last ``decay_share`` of the time."""
    warm = min(1.0, (step + 1) / settings["warmup_steps"])
    return warm * min(1.0, max(0.0, (1.0 - progress) / settings["decay_share"]))


class TinyTrainer:
    """The training of ``tiny``: state that a checkpoint must hold, and the step."""

    def __init__(self, recipe: dict[str, Any], run_dir: Path, train: list[str], heldout: str) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        self.settings = recipe["training"]
        self.run_dir = run_dir
        self.window = self.settings["window"]
        torch.manual_seed(self.settings["seed"])
        torch.set_num_threads(self.settings["threads"])
        vocab = recipe["tokenizer"]["vocab_size"]
        if (run_dir / "model" / "tokenizer.json").exists():
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(run_dir / "model")
        else:
            self.tokenizer = build_tokenizer(train, vocab, self.window)
            self.tokenizer.save_pretrained(run_dir / "model")
        self.stream = encode_stream(self.tokenizer, train)
        self.heldout_ids = encode_stream(self.tokenizer, [heldout])[1:]
        self.heldout_bytes = len(heldout.encode())
        config = LlamaConfig(
            vocab_size=vocab,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": recipe["model"]["rope_theta"]},
            **{k: v for k, v in recipe["model"].items() if k != "rope_theta"},
        )
        self.model: Any = LlamaForCausalLM(config)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and ".layers." in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or ".layers." not in n]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=self.settings["muon_lr"], weight_decay=self.settings["weight_decay"]),
            torch.optim.AdamW(others, lr=self.settings["adamw_lr"], betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peak_lr = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.generator = torch.Generator().manual_seed(self.settings["seed"])
        self.order = torch.empty(0, dtype=torch.long)
        self.step = 0
        self.seconds = 0.0

    def next_rows(self) -> "torch.Tensor":
        """Return the next rows ``[batch_rows, window]``; every epoch cuts the stream at another offset."""
        import torch

        rows = self.settings["batch_rows"]
        if len(self.order) < rows:
            offset = int(torch.randint(self.window, (1,), generator=self.generator))
            starts = torch.arange(offset, len(self.stream) - self.window, self.window - 1)
            self.order = starts[torch.randperm(len(starts), generator=self.generator)]
        starts, self.order = self.order[:rows], self.order[rows:]
        body = torch.stack([self.stream[s : s + self.window - 1] for s in starts.tolist()])
        return torch.cat([torch.zeros(rows, 1, dtype=torch.long), body], dim=1)

    def train_step(self) -> float:
        """One optimizer step in bf16 autocast; returns the mean loss of the batch (nats per token)."""
        import torch
        from torch.nn.functional import cross_entropy

        rows = self.next_rows()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=rows).logits
        loss = cross_entropy(logits[:, :-1].float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch stubs
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate_factor(self.step, self.seconds / self.settings["seconds"], self.settings)
        for optimizer, peak in zip(self.optimizers, self.peak_lr, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the resumable state aside and rename it; write the stock checkpoint in bf16."""
        import copy

        import torch

        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "generator": self.generator.get_state(),
            "order": self.order,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.run_dir / "state.tmp")
        (self.run_dir / "state.tmp").replace(self.run_dir / "state.pt")
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(self.run_dir / "model")

    def resume(self) -> None:
        """Load the last state, if there is one."""
        import torch

        path = self.run_dir / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.generator.set_state(state["generator"])
            self.order, self.step, self.seconds = state["order"], state["step"], state["seconds"]

    def log(self, loss: float) -> None:
        """Append one line of the curve; bits per byte on the held-out text."""
        self.model.eval()
        bits = nll_bits_per_byte(self.model, self.heldout_ids, self.heldout_bytes, self.window)
        self.model.train()
        tokens = self.step * self.settings["batch_rows"] * (self.window - 1)
        line = {
            "step": self.step,
            "tokens": tokens,
            "seconds": round(self.seconds, 1),
            "train_loss": round(loss, 4),
            "heldout_bits_per_byte": round(bits, 4),
        }
        with (self.run_dir / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def run(self) -> None:
        """Train until the recipe's time is used up."""
        mean, saved = math.nan, self.seconds
        while self.seconds < self.settings["seconds"]:
            begun = time.monotonic()
            loss = self.train_step()
            mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
            self.seconds += time.monotonic() - begun
            if self.seconds - saved >= self.settings["checkpoint_seconds"]:
                saved = self.seconds
                self.save()
                self.log(mean)
        self.save()
        self.log(mean)


def frozen_heldout(limit: int) -> str:
    """Return whole held-out modules, in digest order, as long as they fit in ``limit`` bytes."""
    kept, size = [], 0
    for _, text in stdlib_texts("heldout"):
        n = len(text.encode("utf-8"))
        if size + n <= limit:
            kept.append(text)
            size += n
    return "".join(kept)


def main() -> None:
    """Parse the command line and train."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())
    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    heldout_file = arguments.run_dir / "heldout.txt"
    if not heldout_file.exists():
        heldout_file.write_text(frozen_heldout(recipe["heldout_max_bytes"]), encoding="utf-8")
    train = [text for _, text in stdlib_texts("train")]
    trainer = TinyTrainer(recipe, arguments.run_dir, train, heldout_file.read_text(encoding="utf-8"))
    trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
