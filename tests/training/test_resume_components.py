"""A run that was killed or stopped goes on exactly, whatever data, sampler, tuning and optimizer it has."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_config, small_model
from transformers import TrainerCallback

pytest.importorskip("datasets")
pytest.importorskip("peft")

from apt.training.components import build
from apt.training.config import parse_config
from apt.training.contract import Resources
from apt.training.runner import run

TEXTS = [f"{'abcdefgh 你好 🙂'[i % 9 :]} {'x' * (i * 7 % 23)}" for i in range(40)]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def write_texts(folder: Path) -> None:
    for name, texts in (("train", TEXTS[:30]), ("other", TEXTS[30:36]), ("eval", TEXTS[36:])):
        lines = [json.dumps({"text": t, "difficulty": len(t)}, ensure_ascii=False) for t in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def data(resources: Resources, folder: Path, name: str, **section: Any) -> Any:
    section = {"name": "jsonl", "path": str(folder / f"{name}.jsonl"), "text": "text", "window": 24, **section}
    if name == "mixture":
        parts = {n: {**section, "path": str(folder / f"{n}.jsonl")} for n in ("train", "other")}
        section = {"name": "mixture", "parts": parts}
    held = {"name": "text", "path": "embedded"}
    config = parse_config({"train": {"steps": 1}, "data": {"train": section, "eval": held}})
    assert config.data is not None
    return build("data", config.data.train, resources)


def long_run(
    run_dir: Path, folder: Path, case: str, callbacks: tuple[TrainerCallback, ...] = ()
) -> tuple[dict[str, torch.Tensor], list[Any]]:
    settings = json.loads(case)
    model = small_model(vocab_size=300, attention_dropout=0.1)
    resources = Resources(tokenizer=tokenizer(), model=model)
    given = settings.pop("data")
    steps = settings.pop("steps", 20)
    config = small_config(steps=steps, eval_every=5, batch_rows=2, grad_accum=2, **settings)
    result = run(
        config, model, data(resources, folder, **given), evaluation=data(resources, folder, "eval"), run_dir=run_dir,
        resources=resources, callbacks=callbacks,
    )  # fmt: skip
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return weights, [(p.step, p.tokens, p.train_loss, p.eval_loss) for p in result.curve]


def assert_same(first: tuple[Any, Any], second: tuple[Any, Any]) -> None:
    assert first[1] == second[1]
    for name, weight in first[0].items():
        assert torch.equal(weight, second[0][name]), name


class Stop(TrainerCallback):
    """Ends a run as an interruption does, in the middle of an interval."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt


class Die(TrainerCallback):
    """Kills the process in the middle of an interval, with states on disk."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


CASES = {
    "stream, padded, lora, muon": {
        "data": {"name": "train", "streaming": True}, "tuning": {"name": "lora", "r": 2, "dropout": 0.2},
        "optimizer": {"name": "muon"},
    },
    "packed, length_grouped, frozen, muon": {
        "data": {"name": "train", "layout": "packed"}, "sampler": {"name": "length_grouped", "chunk_batches": 2},
        "tuning": {"name": "frozen", "last_layers": 1}, "optimizer": {"name": "muon"},
    },
    "mixture, adafactor": {
        "data": {"name": "mixture"}, "sampler": {"name": "mixture", "weights": {"train": 1, "other": 2}},
        "optimizer": {"name": "adafactor"},
    },
    "curriculum, lora": {
        "data": {"name": "train"}, "sampler": {"name": "curriculum", "by": "difficulty", "over_batches": 12},
        "tuning": {"name": "lora", "targets": ["q_proj", "down_proj"], "dropout": 0.1},
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stopped_run_goes_on_exactly(case: dict[str, Any], tmp_path: Path) -> None:
    write_texts(tmp_path)
    text = json.dumps({"steps": 12, **case})
    with pytest.raises(KeyboardInterrupt):
        long_run(tmp_path / "stopped", tmp_path, text, (Stop(),))
    resumed = long_run(tmp_path / "stopped", tmp_path, text)
    assert_same(long_run(tmp_path / "whole", tmp_path, text), resumed)


CHILD = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
spec = importlib.util.spec_from_file_location("test_resume_components", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.long_run(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], (module.Die(),))
"""


def test_a_killed_run_over_a_packed_stream_with_adapters_goes_on_exactly(tmp_path: Path) -> None:
    write_texts(tmp_path)
    case = json.dumps(
        {
            "steps": 30,
            "data": {"name": "train", "streaming": True, "layout": "packed"},
            "tuning": {"name": "lora", "r": 4, "dropout": 0.2},
        }
    )
    run_dir = tmp_path / "killed"
    ended = subprocess.run([sys.executable, "-c", CHILD, __file__, str(run_dir), str(tmp_path), case], timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert (run_dir / "checkpoint-10").exists() and not (run_dir / "checkpoint-15").exists()
    # The stream stands inside of a document that goes on in the next row.
    states = [json.loads(p.read_text())["data"] for p in run_dir.glob("checkpoint-*/place.json")]
    assert any(state["left"]["ids"] for state in states)
    resumed = long_run(run_dir, tmp_path, case)
    assert_same(long_run(tmp_path / "whole", tmp_path, case), resumed)
