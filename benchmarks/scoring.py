"""Scoring of `test` against lm-evaluation-harness: same model, same items, batches of 8, CPU, in one run.

    python benchmarks/scoring.py [--items 30] [--documents 24] [--turns 2] [--directory build/scoring]

Made on the spot: a random Llama of 12 layers × 512 with a byte-level BPE of 32,000 tokens trained on the standard
library, four-way questions (a piece of a module; which of four lines goes on?) and documents of very different lengths
that fit the context of 1024. The peer lives in a virtual environment that is made (and kept) in the directory. Timed
is, on both sides, what lies between texts and log-likelihoods (tokenizing and scoring; neither imports nor loading), in
CPU seconds with one thread each, which other work on the machine disturbs least; the two take turns, each figure is the
median of the turns. The exit code is 1 when a bar is missed: 4 × on four-way choice, 2.5 × on rolling perplexity,
identical accuracy, bits per byte within 1e-4, and the same for every batch size.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from startup import environment

os.environ["OMP_NUM_THREADS"] = "1"

ROOT: Final = Path(__file__).resolve().parent.parent
PEER: Final = "lm_eval==0.4.13"
CONTEXT: Final = 1024
BARS: Final = {"choice": 4.0, "rolling": 2.5}
SEED: Final = 1

#: Runs in the peer's environment; prints what it found as the last line.
PEER_SCRIPT: Final = """
import json, sys, time
from pathlib import Path
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

folder = Path(sys.argv[1])
lm = HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=8, max_length=1024,
          add_bos_token=True)
seconds = {}
for name in ("loglikelihood", "loglikelihood_rolling"):
    def timed(*args, _name=name, _run=getattr(lm, name), **more):
        begun = time.process_time()
        found = _run(*args, **more)
        seconds[_name] = time.process_time() - begun
        return found
    setattr(lm, name, timed)
tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
found = {}
for name in ("local_choice", "local_rolling"):
    lm.add_bos_token = name == "local_choice"  # a rolling text begins with the prefix token, which is BOS already
    found |= simple_evaluate(lm, tasks=[name], task_manager=tasks, bootstrap_iters=0)["results"]
print(json.dumps({
    "choice": {"seconds": seconds["loglikelihood"], "accuracy": found["local_choice"]["acc,none"],
               "accuracy_by_length": found["local_choice"]["acc_norm,none"]},
    "rolling": {"seconds": seconds["loglikelihood_rolling"],
                "bits_per_byte": found["local_rolling"]["bits_per_byte,none"]},
}))
"""

CHOICE_YAML: Final = """task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/choice.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING_YAML: Final = """task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/rolling.jsonl"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: bits_per_byte}}]
"""


def make_model(folder: Path, texts: list[str]) -> None:
    """Write the model and its tokenizer, where they are not there."""
    if (folder / "model" / "config.json").exists():
        return
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder / "model")
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1376, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def write_items(folder: Path, texts: list[str], items: int, documents: int) -> None:
    """Write the questions and documents, and the peer's descriptions of them."""
    random = np.random.default_rng(SEED)
    lines = [t.splitlines(keepends=True) for t in texts if t.count("\n") > 60]
    questions = []
    for _ in range(items):
        module = lines[random.integers(len(lines))]
        at = int(random.integers(0, len(module) - 30))
        context = "".join(module[at : at + int(random.integers(12, 28))]).rstrip()
        others = [lines[random.integers(len(lines))] for _ in range(3)]
        following = [module[at + 28 :], *(o[int(random.integers(len(o) - 1)) :] for o in others)]
        choices = [next(("\n" + line.rstrip() for line in part if line.strip()), "\npass") for part in following]
        place = int(random.integers(4))
        choices[0], choices[place] = choices[place], choices[0]
        questions.append({"context": context, "choices": choices, "answer": place})
    # Lengths spread as those of web pages are, from a remark to an article: log-normal, cut to fit the context.
    sizes = np.clip(np.exp(random.normal(6.5, 1.0, documents)), 80, 2600).astype(int)
    texts = ["".join(lines[random.integers(len(lines))])[: int(n)] for n in sizes]
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    for name, rows in (("choice", questions), ("rolling", [{"text": t} for t in texts])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    for name, template in (("choice", CHOICE_YAML), ("rolling", ROLLING_YAML)):
        (folder / "tasks" / f"{name}.yaml").write_text(template.format(folder=folder), encoding="utf-8")


class Ours:
    """The scorer of `test`, loaded once."""

    def __init__(self, folder: Path) -> None:
        import torch

        from apt.checkpoint.reader import Checkpoint
        from apt.evaluation.scorers import TransformersScorer

        checkpoint = Checkpoint.open(folder / "model")
        self.folder = folder
        self.scorer = TransformersScorer(checkpoint.load(dtype=torch.float32))
        self.tokenizer = checkpoint.tokenizer()

    def run(self, batch_rows: int) -> dict[str, dict[str, float]]:
        """Score the questions and the documents."""
        from apt.evaluation.scoring import bits_per_byte, score_rows
        from apt.evaluation.task_scoring import score_task
        from apt.evaluation.tasks import read_task
        from apt.evaluation.texts import cut_documents, read_documents

        task = read_task(self.folder / "choice.jsonl")
        begun = time.process_time()
        score = score_task(self.scorer, self.tokenizer, task, batch_rows=batch_rows)
        found: dict[str, dict[str, float]] = {"choice": {"seconds": time.process_time() - begun}}
        found["choice"] |= {m.name: m.estimate.value for m in score.metrics}
        documents = read_documents(self.folder / "rolling.jsonl")
        begun = time.process_time()
        rows = cut_documents(self.tokenizer, documents, CONTEXT, "documents")
        scores = score_rows(self.scorer, rows, batch_rows=batch_rows)
        seconds = time.process_time() - begun
        assert rows.row_bytes is not None
        found["rolling"] = {"seconds": seconds, "bits_per_byte": bits_per_byte(scores, rows.row_bytes).value}
        return found


def peer_run(python: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Run the peer once, offline."""
    settings = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"HF_HOME": str(folder / "hf"), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [str(python), "-c", PEER_SCRIPT, str(folder)], env={**os.environ, **settings}, capture_output=True, text=True
    )
    if ran.returncode:
        raise SystemExit(f"the peer failed:\n{ran.stderr[-3000:]}")
    found: dict[str, dict[str, float]] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Make model, items and environment, take turns, print both figures and the ratio of every bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "scoring")
    arguments = parser.parse_args()
    folder = arguments.directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder, "lm_eval", "-c", "constraints.txt", PEER, "torch", "transformers", "accelerate")
    from apt.assets.corpus import stdlib_texts

    texts = [t for _, t in stdlib_texts("train")]
    make_model(folder, texts)
    write_items(folder, texts, arguments.items, arguments.documents)
    ours = Ours(folder)
    turns = [(ours.run(8), peer_run(python, folder)) for _ in range(arguments.turns)]
    held = True
    print(f"{'four-way choice and rolling text, batches of 8':<46} {'ours':>12} {PEER:>16} {'ratio':>7} {'bar':>6}")
    for name, bar in BARS.items():
        mine, theirs = (statistics.median(t[side][name]["seconds"] for t in turns) for side in (0, 1))
        held &= theirs / mine >= bar
        print(f"{name + ', seconds':<46} {mine:12.2f} {theirs:16.2f} {theirs / mine:6.2f}x {bar:5.1f}x")
    first, peer = turns[0]
    for figure in ("accuracy", "accuracy_by_length"):
        a, b = first["choice"][figure], peer["choice"][figure]
        held &= a == b
        print(f"{'choice, ' + figure:<46} {a:12.6f} {b:16.6f} {'' if a == b else 'DIFFERENT':>7} {'equal':>6}")
    a, b = first["rolling"]["bits_per_byte"], peer["rolling"]["bits_per_byte"]
    held &= abs(a - b) <= 1e-4
    print(f"{'rolling, bits per byte':<46} {a:12.6f} {b:16.6f} {abs(a - b):7.1e} {'1e-4':>6}")
    for batch_rows in (1, 4, 16):
        other = ours.run(batch_rows)
        same = all(first["choice"][f] == other["choice"][f] for f in ("accuracy", "accuracy_by_length"))
        gap = abs(first["rolling"]["bits_per_byte"] - other["rolling"]["bits_per_byte"])
        held &= same and gap <= 1e-6
        label = f"ours with batches of {batch_rows}: bits per byte off by"
        print(f"{label:<46} {gap:12.1e} {'accuracy equal' if same else 'ACCURACY DIFFERS':>16}")
    print("every bar held" if held else "A BAR IS MISSED")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
