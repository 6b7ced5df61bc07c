"""One of the processes of ``test_sharding.py``; writes what it found to a JSON file for its rank.

python -m torch.distributed.run --nproc-per-node 2 sharding_child.py FOLDER MODEL
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import job_helpers
import torch
from parallel_child import guarded, unequal_rows
from training_helpers import small_config, small_model
from transformers import TrainerCallback

from apt.console.errors import AptError
from apt.training import job
from apt.training.contract import Resources
from apt.training.runner import run, steps_within

#: What is trained and how; the first has parameters in the loss, and its best weights in the middle.
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"grad_accum": 2, "steps": 8, "loss": {"name": "distill", "strategy": "feature"}},
    "muon": {"optimizer": {"name": "muon"}, "steps": 2, "eval_every": 1},
    "lora": {"tuning": {"name": "lora", "r": 4}},
    "frozen": {"tuning": {"name": "frozen", "last_layers": 1}},
}
#: So fast that no evaluation is better than the first.
SPOILED: dict[str, Any] = {"optimizer": {"name": "adamw", "lr": 1.0}, "steps": 2, "eval_every": 1}


class Stop(TrainerCallback):
    """Ends a run before its last step as a fault would, on every process."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == state.max_steps - 1:
            raise KeyboardInterrupt


def settings_of(name: str, processes: int) -> dict[str, Any]:
    """Steps that see the same rows however many processes share them; five batches of rows to evaluate."""
    case = {"steps": 4, "eval_every": 2, "eval_rows": 10, "log_every": 1, **CASES.get(name, SPOILED)}
    return {**case, "batch_rows": 8 // processes // case.get("grad_accum", 1)}


def trained(folder: Path, name: str, processes: int, *, watchers: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Train a small model, sharded where there are several processes, and return what came of it."""
    model = small_model()
    config = small_config(sharding="fsdp2" if processes > 1 else "none", **settings_of(name, processes))
    teacher = small_model(1).eval().requires_grad_(False)
    result = run(
        config, model, unequal_rows(), run_dir=folder, resources=Resources(teacher=teacher), callbacks=watchers
    )
    assert all(type(p) is torch.nn.Parameter for p in model.parameters())
    assert type(model).__name__ == "LlamaForCausalLM"
    return {
        "curve": [(p.step, p.eval_loss, p.train_loss or 0.0) for p in result.curve],
        "best": result.best_step,
        "gradient": result.metrics["train/grad_norm"],
        "weights": {name: p.detach().flatten().tolist() for name, p in model.named_parameters()},
    }


def timed() -> bool:
    """Count the steps of a time, and tell whether the model is as it was."""
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps_within(0.1, small_config(sharding="fsdp2"), model, unequal_rows())
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def checkpoint(folder: Path, model: str, **train: Any) -> str | None:
    """Train a checkpoint as the command does; return the refusal where there is one."""
    folder.mkdir(exist_ok=True)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    config = job_helpers.write_config(folder / f"run{rank}.yaml", job_helpers.small_run(**train))
    options = job.TrainOptions(config=config, output=folder / "out", model=model)
    try:
        job.train(options, job_helpers.registry())
    except AptError as error:
        return str(error)
    return None


def main(folder: Path, model: str) -> None:
    gc.freeze()  # accelerate collects garbage twice a run, and would go through all that was imported
    found: dict[str, Any] = {name: trained(folder / name, name, 2) for name in (*CASES, "spoiled")}
    for name in ("adamw", "muon"):
        try:
            trained(folder / f"{name} resumed", name, 2, watchers=(Stop(),))
        except KeyboardInterrupt:
            found[f"{name} resumed"] = trained(folder / f"{name} resumed", name, 2)
    found["skipped"] = guarded(folder / "skipped", "skip", "fsdp2")
    found["timed"] = timed()
    assert checkpoint(folder / "job", model, batch_rows=2, sharding="fsdp2") is None
    rank = torch.distributed.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
