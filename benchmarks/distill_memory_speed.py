"""Distillation losses against the naive full-logit KL and TRL's chunked loss: time and memory of a training step.

    python benchmarks/distill_memory_speed.py [--runs 7] [--vocabulary 151936] [--device cpu|cuda] [--trl-python PYTHON]

A step is teacher forward, student forward and backward, and fused AdamW, on batches of 4 × 256 random ids; random
Llamas with tied heads (teacher 10 layers × 512, student 6 × 256). Every method is a process of its own; the processes
take turns, so that what else happens on the machine happens to all; at most five are held in memory at once, and the
naive loop is one of each group. Time is CPU seconds of one thread (wall time on a
GPU), the median of the runs after one that warms up. Memory is the peak during the steps less what is resident once the
models are loaded (the student's gradients and the optimizer's state are in it). All methods start from the same
weights, and the losses of the whole-distribution forward KLs must agree. The exit code is 1 when a bar is missed, and
when a method does not start.

`--trl-python` is an interpreter with trl 1.16 (by default an environment is made under build/); it runs
`_chunked_divergence_loss`, what TRL's stable DistillationTrainer trains with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT: Final = Path(__file__).resolve().parent.parent
TRL: Final = ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0")
ROWS, WINDOW = 4, 256
DIVERGENCES: Final = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "tvd")
#: Bars: (time, memory) as shares of the naive step.
BARS: Final[dict[str, tuple[float, float | None]]] = {
    "forward_kl": (0.78, 0.25),
    "reverse_kl": (0.95, 0.30),
    "jsd": (0.95, 0.30),
    "skew_kl": (0.95, 0.30),
    "tvd": (0.95, 0.30),
    "forward_kl, bf16 teacher": (0.60, None),
    "cached top-64": (0.42, None),
    "cached packed k=128": (0.50, None),
}
#: Methods whose processes are held in memory together, beside the naive loop's.
GROUP: Final = 4
#: TRL's step takes at least so many times the time of ours.
TRL_BAR: Final = 2.0


class Steps:
    """Models, batch and optimizer of one method."""

    def __init__(self, method: str, vocabulary: int, device: str, cache: str) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(1)

        def model(seed: int, hidden: int, layers: int, ff: int) -> Any:
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ff, num_hidden_layers=layers,
                num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
            )  # fmt: skip
            return LlamaForCausalLM(config).to(device)

        self.torch, self.method, self.device = torch, method, device
        self.teacher = None
        if not method.startswith("cached"):
            self.teacher = model(0, 512, 10, 1536).eval().requires_grad_(False)
            with torch.no_grad():  # a trained head's logits have a spread of a few nats
                self.teacher.lm_head.weight.mul_(4.0)
            if "bf16" in method:
                self.teacher = self.teacher.to(torch.bfloat16)
        self.student = model(1, 256, 6, 768).train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(vocabulary, (ROWS, WINDOW), generator=generator)
        self.batch = {"input_ids": ids.to(device), "labels": ids.to(device), "row": torch.arange(ROWS)}
        self.step_of = self._naive if method == "naive" else self._trl if method == "trl" else self._ours(cache)

    def step(self) -> float:
        """Make one step; return its loss per token."""
        loss = self.step_of()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _naive(self) -> Any:
        from torch.nn.functional import kl_div, log_softmax, softmax

        with self.torch.no_grad():
            theirs = self.teacher(self.batch["input_ids"], use_cache=False).logits[:, :-1]
        ours = self.student(self.batch["input_ids"], use_cache=False).logits[:, :-1]
        total = kl_div(log_softmax(ours, -1), softmax(theirs, -1), reduction="sum")
        return total / (ROWS * (WINDOW - 1))

    def _trl(self) -> Any:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        with self.torch.no_grad():
            theirs = self.teacher.model(self.batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        ours = self.student.model(self.batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        mask = self.torch.ones(ours.shape[:2], dtype=self.torch.long, device=self.device)
        return _chunked_divergence_loss(
            ours, theirs, self.student.lm_head.weight, self.teacher.lm_head.weight, mask, 0.0
        )[0]

    def _ours(self, cache: str) -> Any:
        sys.path.insert(0, str(ROOT))
        from apt.training.components import build_loss, core_registry
        from apt.training.contract import Resources
        from apt.training.losses.distill import DistillLossOptions
        from apt.training.teachers.memory import MemoryTeacherOptions

        teacher: Any = MemoryTeacherOptions()
        if self.method.startswith("cached"):
            from apt.training.teachers.cache import CacheTeacherOptions

            teacher = CacheTeacherOptions(path=cache)
        divergence = self.method if self.method in DIVERGENCES else "forward_kl"
        options = DistillLossOptions(divergence=divergence, alpha=1.0, teacher=teacher)
        loss = build_loss(options, core_registry(), resources=Resources(teacher=self.teacher, model=self.student))
        rng = self.torch.Generator()

        def step() -> Any:
            out = loss(self.student, self.batch, rng=rng, step=0)
            return out.loss_sum / out.weight

        return step


def resident_mb(name: str) -> float:
    """A figure of /proc/self/status in MB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1000 for line in text.splitlines() if line.startswith(name))


def work(arguments: argparse.Namespace) -> None:
    """One method: a line on stdin asks for a step, a line on stdout tells its time, loss and memory."""
    steps = Steps(arguments.worker, arguments.vocabulary, arguments.device, arguments.cache)
    cuda = arguments.device == "cuda"
    base = steps.torch.cuda.memory_allocated() / 1e6 if cuda else resident_mb("VmRSS")
    if cuda:
        steps.torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        clock = time.perf_counter if cuda else time.process_time
        begun = clock()
        loss = steps.step()
        if cuda:
            steps.torch.cuda.synchronize()
        peak = steps.torch.cuda.max_memory_allocated() / 1e6 if cuda else resident_mb("VmHWM")
        print(json.dumps({"seconds": clock() - begun, "loss": loss, "over_mb": peak - base}), flush=True)


class Method:
    """The process of a method."""

    def __init__(self, method: str, python: str, arguments: argparse.Namespace, cache: str) -> None:
        command = [python, __file__, "--worker", method, "--vocabulary", str(arguments.vocabulary)]
        command += ["--device", arguments.device, "--cache", cache]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._line() == "ready"

    def step(self) -> dict[str, float]:
        """Have one step made; empty when the process has ended before its time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {}
        found: dict[str, float] = json.loads(self._line() or "{}")
        return found

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate("end\n" if self._process.poll() is None else None)

    @property
    def code(self) -> int | None:
        """The exit code; below zero the signal that ended the process."""
        return self._process.returncode

    def _line(self) -> str:
        """The next line that is ours, not a library's; empty when the process has ended."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.strip() == "ready" or line.startswith("{"):
                return line.strip()
        return ""


def capture_caches(vocabulary: int, folder: Path) -> dict[str, str]:
    """Write the logits of the benchmark's teacher for its batch, as `distill --cache` does."""
    sys.path.insert(0, str(ROOT))
    from apt.training.data.rows import TokenRows
    from apt.training.teachers.capture import CaptureOptions, capture

    steps = Steps("forward_kl", vocabulary, "cpu", "")
    rows = TokenRows(steps.batch["input_ids"], steps.batch["labels"])
    found = {}
    for name, k, encoding in (("cached top-64", 64, "plain"), ("cached packed k=128", 128, "packed")):
        path = folder / name.replace(" ", "-")
        result = capture(steps.teacher, rows, path, CaptureOptions(k=k, encoding=encoding))
        print(f"{name}: {result.bytes_per_token:.1f} bytes a token")
        found[name] = str(path)
    return found


def main() -> int:
    """Run all methods in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--trl-python")
    parser.add_argument("--only", nargs="*", help="methods to run beside the naive one")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return 0
    return compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    """Measure, print, and tell by the exit code whether every bar is reached."""
    # TRL stands in the group of the forward KL, which it is compared with.
    methods = ["forward_kl", "trl", *[m for m in BARS if m != "forward_kl"]]
    if arguments.only is not None:
        methods = [m for m in methods if m in arguments.only]
    trl = arguments.trl_python
    if trl is None and "trl" in methods:
        from startup import environment

        trl = str(environment(ROOT / "build", "distill-trl", *TRL))
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        wanted = any(m.startswith("cached") for m in methods)
        caches = capture_caches(arguments.vocabulary, Path(folder)) if wanted else {}
        for begin in range(0, len(methods), GROUP):
            group = {
                m: Method(m, trl if m == "trl" else sys.executable, arguments, caches.get(m, ""))
                for m in ["naive", *methods[begin : begin + GROUP]]
            }
            rows |= measure(group, arguments.runs)
    return show(rows)


@dataclass
class Row:
    """What was measured of a method; shares are of the naive loop in the same group."""

    loss: float
    seconds: float
    time_share: float
    over_mb: float
    memory_share: float


def measure(group: dict[str, Method], runs: int) -> dict[str, Row]:
    """Let the methods of a group take turns; a method that did not start, or ended, has a row without figures."""
    ready = {name: method for name, method in group.items() if method.ready}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ready}
    for run in range(runs + 1):
        for name, method in ready.items():
            found[name].append(method.step())
        print(f"{', '.join(ready)}: run {run} of {runs}", file=sys.stderr)
    for method in group.values():
        method.end()
    found = {name: steps for name, steps in found.items() if all(steps)}
    if "naive" not in found:
        raise SystemExit(
            f"the naive loop's process ended early with {group['naive'].code}: -9 is a machine without memory"
        )
    seconds = {m: statistics.median(r["seconds"] for r in steps[1:]) for m, steps in found.items()}
    memory = {m: max(r["over_mb"] for r in steps) for m, steps in found.items()}
    naive = seconds["naive"], memory["naive"]
    rows = {
        m: Row(found[m][0]["loss"], seconds[m], seconds[m] / naive[0], memory[m], memory[m] / naive[1]) for m in found
    }
    return rows | dict.fromkeys(group.keys() - found.keys(), Row(*[float("nan")] * 5))


def show(rows: dict[str, Row]) -> int:
    """Print the table; return 1 when a bar is missed."""
    missed = 0
    print(
        f"{'method':26} {'loss':>10} {'s/step':>8} {'× naive':>8} {'bar':>5} {'MB over':>8} {'× naive':>8} {'bar':>5}"
    )
    for method, row in rows.items():
        if row.loss != row.loss:
            print(f"{method:26} no figures: its interpreter lacks a package, or memory ran out")
            missed += 1
            continue
        time_bar, memory_bar = BARS.get(method, (None, None))
        bars = [(row.time_share, time_bar), (row.memory_share, memory_bar)]
        faults = sum(value > bar for value, bar in bars if bar is not None)
        missed += faults
        verdict = "MISSED" if faults else "ok" if time_bar else ""
        print(
            f"{method:26} {row.loss:10.6f} {row.seconds:8.3f} {row.time_share:8.3f} {time_bar or '':>5} "
            f"{row.over_mb:8.0f} {row.memory_share:8.3f} {memory_bar or '':>5} {verdict}"
        )
    if "trl" in rows and "forward_kl" in rows:
        ratio = rows["trl"].time_share / rows["forward_kl"].time_share
        slow = not ratio >= TRL_BAR
        missed += slow
        print(f"TRL's chunked loss takes {ratio:.2f} × our time (bar {TRL_BAR}) {'MISSED' if slow else 'ok'}")
    whole = [rows[m].loss for m in ("naive", "forward_kl", "trl") if m in rows and rows[m].loss == rows[m].loss]
    spread = (max(whole) - min(whole)) / max(whole)
    missed += spread > 1e-5
    print(f"first losses of the forward KLs agree to {spread:.1e} (bar 1e-5) {'MISSED' if spread > 1e-5 else 'ok'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
