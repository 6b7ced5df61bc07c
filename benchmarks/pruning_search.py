"""What the search over depth and width is worth, against the best single axis at the same share of weights.

    python benchmarks/pruning_search.py [--model tiny] [--parameters 0.7 | --ratio 0.4] [--effort fast]
    python benchmarks/pruning_search.py --model ./stories260K --rows ./tokens.npz

Single axes: layers only, ff channels only, heads only (whole KV groups with their query heads, then query heads), each
at its legal plan whose size is nearest to what the search found (no rival when further off than two points of the
linear weights), mended with the same effort on the same rows (fast: least squares; full: refits of blocks besides).
Perplexity is measured on the split ``heldout``. Then a second target is asked for with the effort fast, whose search
reads the table that the first one left. The exit code is 1 when a bar is missed: 15 % lower perplexity than the best
axis, 600 CPU seconds for the first search, 30 for the second.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any, Final

from pruning_table import HEADER, Row, Subject

from apt.plugins.optional.pruning.contract import Task
from apt.plugins.optional.pruning.decoder.sizes import Sizes, removed_share
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.strategies.structured import StructuredStrategy
from apt.plugins.optional.pruning.structure.hidden import Widths
from apt.plugins.optional.pruning.structure.plans import TOLERANCE
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, reconstruct
from apt.plugins.optional.pruning.structure.refit import refit
from apt.plugins.optional.pruning.structure.search import searching_part
from apt.plugins.optional.pruning.structure.sensitivity import Sensitivity, Table
from apt.plugins.optional.pruning.structure.surgery import build

#: Perplexity of the best single axis less that of the search, relative to the former.
MARGIN: Final = 0.15
FIRST_CPU_SECONDS: Final = 600.0
SECOND_CPU_SECONDS: Final = 30.0


def single_axis_plans(subject: Subject, share: float) -> dict[str, Sizes]:
    """For every axis the plan whose removed share is nearest to ``share``."""
    dense = subject.sizes
    divides = subject.architecture.heads_divide_hidden
    axes = {
        "layers only": [replace(dense, layers=n) for n in range(1, dense.layers)],
        "ff only": [replace(dense, ff=n) for n in range(1, dense.ff)],
        "heads only": [
            replace(dense, kv_groups=groups, heads_per_group=heads)
            for groups in range(1, dense.kv_groups + 1)
            for heads in range(1, dense.heads_per_group + 1)
            if not divides or dense.hidden % (groups * heads) == 0
        ],
    }
    found = {}
    for axis, plans in axes.items():
        smaller = [s for s in plans if s != dense]
        if smaller:
            found[axis] = min(smaller, key=lambda s: abs(removed_share(dense, s) - share))
    return found


def axis_row(subject: Subject, axis: str, sizes: Sizes, effort: str) -> Row:
    """Cut along one axis, mend with the same effort as the search does, and measure."""
    begun = time.process_time()
    decoder = subject.decoder()
    batches = trace(decoder, subject.calibration)
    widths = Widths(decoder, subject.architecture, searching_part(batches), subject.sizes)
    sensitivity = Sensitivity(widths, [], Table(None))
    dropped = sensitivity.dropped(subject.sizes.layers - sizes.layers)
    cut = reconstruct(decoder, Calibration(batches), subject.sizes, sizes, dropped, measure=False).cut
    model = build(subject.model, subject.architecture, cut)
    if effort == "full":
        refit(subject.decoder(model), cut, batches)
    seconds = time.process_time() - begun
    plan = sizes.describe() + (f" (without {', '.join(map(str, dropped))})" if dropped else "")
    return subject.measured(axis, removed_share(subject.sizes, sizes), model, seconds, plan)


def search_row(subject: Subject, goal: Goal, name: str, effort: Any) -> Row:
    """Let the strategy search for a plan, and measure."""
    begun = time.process_time()
    task = Task(subject.model, subject.architecture, goal, subject.calibration, effort)
    pruned = StructuredStrategy().prune(task)
    seconds = time.process_time() - begun
    return subject.measured(name, pruned.removed_share, pruned.model, seconds, pruned.plan)


def main() -> int:
    """Measure the axes, the search and the second search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", default="embedded", help="embedded, or a .npz with calibration and heldout")
    parser.add_argument("--parameters", type=float, default=0.7, help="share of the parameters that may be left")
    parser.add_argument("--ratio", type=float, help="share of the linear weights to remove, in place of --parameters")
    parser.add_argument("--second", type=float, default=0.3, help="share of the linear weights of the second target")
    parser.add_argument("--effort", default="fast", choices=("fast", "full"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # the first search finds no table of an earlier run
        subject = Subject.open(arguments.model, arguments.rows)
        print(f"{arguments.model}: perplexity on {subject.heldout.tokens:,} held-out tokens ({arguments.rows})")
        dense = subject.dense_row()
        print(f"{HEADER}\n{dense.told()}", flush=True)
        parameters = round(arguments.parameters * sum(p.numel() for p in subject.model.parameters()))
        goal = Goal(parameters=parameters) if arguments.ratio is None else Goal(ratio=arguments.ratio)
        first = search_row(subject, goal, "search", arguments.effort)
        plans = single_axis_plans(subject, first.share)
        axes = [axis_row(subject, axis, sizes, arguments.effort) for axis, sizes in plans.items()]
        second = search_row(subject, Goal(ratio=arguments.second), "second target, fast", "fast")
    for row in [*axes, first, second]:
        print(row.told(dense))
    # An axis that cannot remove the same share is no rival: it is shown, and not compared.
    rivals = [row.value for row in axes if abs(row.share - first.share) <= TOLERANCE]
    if not rivals:
        print("no axis alone can remove as much: nothing to compare with")
        return 1
    figures = {
        f"lower perplexity than the best axis (bar {MARGIN:.0%})": (1 - first.value / min(rivals), MARGIN, 1),
        f"CPU seconds of the first target (bar {FIRST_CPU_SECONDS:.0f})": (first.cpu_seconds, FIRST_CPU_SECONDS, -1),
        f"CPU seconds of the second (bar {SECOND_CPU_SECONDS:.0f})": (second.cpu_seconds, SECOND_CPU_SECONDS, -1),
    }
    held = True
    for name, (value, bar, sign) in figures.items():
        good = sign * value >= sign * bar
        held &= good
        shown = f"{value:.1%}" if sign > 0 else f"{value:.1f}"
        print(f"{name:<60} {shown:>8} {'held' if good else 'MISSED'}")
    print("every bar held" if held else "A BAR IS MISSED")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
