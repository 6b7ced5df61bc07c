"""Distillation losses against the naive full-logit KL and TRL's chunked loss: time and memory of a training step.

    python benchmarks/distill_memory_speed.py [--runs 7] [--vocabulary 151936] [--device cpu|cuda] [--trl-python PYTHON]

A step is teacher forward, student forward and backward, and fused AdamW, on batches of 4 × 256 random ids; random
Llamas with tied heads (teacher 10 layers × 512, student 6 × 256). Every method is a process of its own; the processes
take turns, so that what else happens on the machine happens to all. Time is CPU seconds of one thread (wall time on a
GPU), the median of the runs after one that warms up. Memory is the peak during the steps less what is resident once the
models are loaded (the student's gradients and the optimizer's state are in it). All methods start from the same
weights, and the losses of the whole-distribution forward KLs must agree. The exit code is 1 when a bar is missed.

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


def start(method: str, python: str, arguments: argparse.Namespace, cache: str) -> subprocess.Popen[str]:
    """Start the process of a method and wait until its models are loaded."""
    command = [
        python,
        __file__,
        "--worker",
        method,
        "--vocabulary",
        str(arguments.vocabulary),
        "--device",
        arguments.device,
        "--cache",
        cache,
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line.strip() != "ready":
        pass
    if not line:
        raise SystemExit(f"{method}: the process ended before it was ready")
    return process


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """Have one step made."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def capture_caches(vocabulary: int, folder: Path) -> dict[str, str]:
    """Write the logits of the benchmark's teacher for its batch, as `distill --cache` does."""
    from apt.training.teachers.capture import CaptureOptions, capture

    from apt.training.data.rows import TokenRows

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
    methods = [*BARS, "trl"] if arguments.only is None else arguments.only
    trl = arguments.trl_python
    if trl is None and "trl" in methods:
        from startup import environment

        trl = str(environment(ROOT / "build", "distill-trl", *TRL))
    with tempfile.TemporaryDirectory() as folder:
        wanted = any(m.startswith("cached") for m in methods)
        caches = capture_caches(arguments.vocabulary, Path(folder)) if wanted else {}
        processes = {
            m: start(m, trl if m == "trl" else sys.executable, arguments, caches.get(m, ""))
            for m in ["naive", *methods]
        }
        found: dict[str, list[dict[str, float]]] = {m: [] for m in processes}
        for run in range(arguments.runs + 1):
            for method, process in processes.items():
                found[method].append(ask(process))
            print(f"run {run} of {arguments.runs}", file=sys.stderr)
        for process in processes.values():
            process.communicate("end\n")
    return show(found)


def show(found: dict[str, list[dict[str, float]]]) -> int:
    """Print the table; return 1 when a bar is missed."""
    seconds = {m: statistics.median(r["seconds"] for r in runs[1:]) for m, runs in found.items()}
    memory = {m: max(r["over_mb"] for r in runs) for m, runs in found.items()}
    missed = 0
    print(
        f"{'method':28} {'loss':>10} {'s/step':>8} {'× naive':>8} {'bar':>6} {'MB over':>9} {'× naive':>8} {'bar':>6}"
    )
    for method in found:
        time_bar, memory_bar = BARS.get(method, (None, None))
        share, room = seconds[method] / seconds["naive"], memory[method] / memory["naive"]
        faults = [b for v, b in ((share, time_bar), (room, memory_bar)) if b is not None and v > b]
        missed += len(faults)
        print(
            f"{method:28} {found[method][0]['loss']:10.6f} {seconds[method]:8.3f} {share:8.3f} {time_bar or '':>6} "
            f"{memory[method]:9.0f} {room:8.3f} {memory_bar or '':>6} {'MISSED' if faults else ''}"
        )
    if "trl" in seconds and "forward_kl" in seconds:
        ratio = seconds["trl"] / seconds["forward_kl"]
        missed += ratio < TRL_BAR
        print(f"TRL's chunked loss takes {ratio:.2f} × our time (bar {TRL_BAR}) {'MISSED' if ratio < TRL_BAR else ''}")
    whole = [found[m][0]["loss"] for m in ("naive", "forward_kl", "trl") if m in found]
    spread = (max(whole) - min(whole)) / max(whole)
    missed += spread > 1e-5
    print(f"first losses of the forward KLs agree to {spread:.1e} (bar 1e-5)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
