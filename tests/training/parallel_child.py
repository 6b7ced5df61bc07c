"""One of the processes of ``test_parallel.py``; writes what it found to a JSON file for its rank.

python -m torch.distributed.run --nproc-per-node 2 parallel_child.py FOLDER
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from training_helpers import small_config, small_model, small_rows
from transformers import TrainerCallback

from apt.console.errors import AptError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.components import build_loss
from apt.training.config import parse_config
from apt.training.contract import Resources
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.runner import run

#: Rows whose weights differ: the first of each pair of micro-batches counts few tokens.
LOSSES: dict[str, dict[str, Any]] = {"ce": {"name": "ce"}, "distill": {"name": "distill", "alpha": 0.6}}


def unequal_rows() -> Any:
    rows = small_rows(36)
    rows.labels[::3, 5:] = -100
    rows.labels[7] = -100
    return rows


class OneSided:
    """Cross-entropy that is no number in step 2, on the second process only."""

    needs: frozenset[str] = frozenset()

    def __init__(self, options: Any, resources: Resources) -> None:
        self._inner = build_loss(CrossEntropyOptions(), resources=resources)

    def __call__(self, model: Any, batch: Any, *, rng: torch.Generator, step: int) -> Any:
        out = self._inner(model, batch, rng=rng, step=step)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 1
        bad = step == 2 and rank == 1
        return out._replace(loss_sum=out.loss_sum * (float("nan") if bad else 1.0))


REGISTRY = Registry(
    [*CORE_COMPONENTS, Component("loss", "one_sided", f"{__name__}:OneSided", "apt.training.sections:Section")]
)


class Stop(TrainerCallback):
    """Ends a run as a fault would, on every process."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def trained(folder: Path, name: str, processes: int, *, accumulate: int = 1, watchers: tuple[Any, ...] = ()) -> Any:
    """Steps that see the same rows however many processes share them."""
    model = small_model()
    config = small_config(
        steps=8, eval_every=2, log_every=1, batch_rows=8 // processes // accumulate, grad_accum=accumulate,
        loss=LOSSES[name], optimizer={"name": "adamw", "lr": 0.003},
    )  # fmt: skip
    teacher = small_model(1).eval().requires_grad_(False)
    logged: list[Any] = []

    class Log(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            logged.extend({k: v for k, v in e.items() if "/" in k and "perf" not in k} for e in state.log_history)

    result = run(
        config, model, unequal_rows(), run_dir=folder, resources=Resources(teacher=teacher),
        callbacks=(*watchers, Log()),
    )  # fmt: skip
    weights = {name: p.detach().flatten().tolist() for name, p in model.named_parameters()}
    return {"log": [e for e in logged if e], "tokens": result.tokens, "best": result.best_step, "weights": weights}


def guarded(folder: Path, on_fault: str, sharding: str = "none") -> Any:
    train = {
        "steps": 4, "batch_rows": 4, "eval_rows": 4, "eval_every": 4, "precision": "fp32",
        "sharding": sharding, "loss": {"name": "one_sided"}, "guards": {"on_non_finite": on_fault},
    }  # fmt: skip
    model = small_model()
    try:
        config = parse_config({"train": train}, REGISTRY)
        result = run(config, model, small_rows(), run_dir=folder, registry=REGISTRY)
    except AptError as error:
        return str(error)
    return [result.skipped_steps, [float(p.detach().double().sum()) for p in model.parameters()]]


def main(folder: Path) -> None:
    gc.freeze()  # accelerate collects garbage twice a run, and would go through all that was imported
    found: dict[str, Any] = {}
    for name in LOSSES:
        for accumulate in (1, 2):
            key = f"{name}-{accumulate}"
            found[key] = trained(folder / key, name, 2, accumulate=accumulate)
    try:
        trained(folder / "resumed", "distill", 2, accumulate=2, watchers=(Stop(),))
    except KeyboardInterrupt:
        found["resumed"] = trained(folder / "resumed", "distill", 2, accumulate=2)
    found["skip"], found["stop"] = (guarded(folder / action, action) for action in ("skip", "stop"))
    try:
        trained(folder / "ce-1", "distill", 2)
    except AptError as error:
        found["foreign"] = str(error)
    rank = torch.distributed.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
