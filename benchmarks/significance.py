"""What the tests of `compare` promise, by simulation: false findings, coverage, power.

    python benchmarks/significance.py [--simulations 10000] [--resamples 1000] [--processes 2]

Every simulation draws the answers of two models to the same items and calls the code that `compare` calls. Without a
difference, at most 6 % of the simulations may find one (the bootstrap at least 4 %: it must not buy safety with
blindness); 95 % intervals must hold the truth in 93.5 to 96.5 % of them; a true difference of the stated minimal
detectable size, up in one half of the simulations and down in the other, must be found in 80 ± 3 %. Beside them, on the
same draws, what the script of the peer does: an unpaired z-test on the two accuracies (lm-evaluation-harness,
`scripts/model_comparator.py`). The exit code is 1 when a bar is missed.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from apt.evaluation.distributions import NORMAL
from apt.evaluation.paired import PairedTest, paired_test
from apt.evaluation.statistics import mean_estimate, ratio_estimate

Draw = Callable[[np.random.Generator, float], tuple[Any, Any, Any, Any]]


def answers(generator: np.random.Generator, effect: float, *, items: int, discordant: float) -> tuple[Any, ...]:
    """Right and wrong answers; ``discordant`` of the items are answered differently."""
    kind = generator.random(items)
    both = generator.random(items) < 0.6
    first = np.where(kind < discordant, kind >= (discordant + effect) / 2, both)
    second = np.where(kind < discordant, kind < (discordant + effect) / 2, both)
    return first.astype(float), second.astype(float), None, None


def passages(generator: np.random.Generator, effect: float, *, sources: int, each: int) -> tuple[Any, ...]:
    """Right and wrong answers to questions that share passages, which are hard or easy as a whole.

    The number of questions about a passage varies, and a passage may suit one of the models.
    """
    counts = generator.integers(1, 2 * each, sources)
    source = np.repeat(np.arange(sources), counts)
    hard = generator.normal(0.5, 0.8, sources)[source]
    suits = generator.normal(0.0, 0.5, sources)[source]
    noise = generator.normal(0, 1, (2, len(source)))
    first = (hard - suits / 2 + noise[0] > 0).astype(float)
    spread = math.sqrt(0.8**2 + 0.25**2 + 1.0)
    shift = spread * NORMAL.inv_cdf(NORMAL.cdf(0.5 / spread) + effect) - 0.5
    second = (hard + suits / 2 + noise[1] > -shift).astype(float)
    return first, second, None, source


def losses(generator: np.random.Generator, effect: float, *, rows: int) -> tuple[Any, ...]:
    """Summed log-likelihoods of rows of various lengths, with a skewed difference as quantizing makes."""
    tokens = generator.integers(40, 512, rows).astype(float)
    first = tokens * generator.gamma(9.0, 0.35, rows)
    per_token = effect + 0.02 * (generator.gamma(2.0, 1.0, rows) - 2.0) / math.sqrt(2.0)
    return first, first + tokens * per_token, tokens, None


@dataclass(frozen=True)
class Case:
    """A kind of data, and which figures have bars there."""

    name: str
    draw: Draw


CASES: Final = (
    Case("200 answers, 15 % differ", partial(answers, items=200, discordant=0.15)),
    Case("1,000 answers, 10 % differ", partial(answers, items=1000, discordant=0.10)),
    Case("60 passages of 1 to 9 questions", partial(passages, sources=60, each=5)),
    Case("64 rows of text", partial(losses, rows=64)),
)


def simulate(case: Case, effect: float, resamples: int, seeds: range) -> "np.ndarray[Any, Any]":
    """Return ``[simulations, 6]``: p, bootstrap p, interval, detectable size, p of the unpaired z-test."""
    out = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        first, second, weights, sources = case.draw(generator, effect if seed % 4 < 2 else -effect)
        test: PairedTest = paired_test(first, second, weights, sources=sources, resamples=resamples, seed=seed)
        unpaired = math.nan
        if weights is None:
            errors = [x.var() / len(x) for x in (first, second)]
            unpaired = 2 * NORMAL.cdf(-abs(second.mean() - first.mean()) / math.sqrt(sum(errors)))
        d = test.difference
        out.append((test.p, test.p_bootstrap, d.low, d.high, test.minimal_detectable, unpaired))
    return np.array(out)


def single_intervals(resamples: int, seeds: range) -> "np.ndarray[Any, Any]":
    """Return ``[simulations, 3]``: whether the intervals of an accuracy, a clustered one and a perplexity hold."""
    out = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        plain = mean_estimate((generator.random(200) < 0.7).astype(float))
        shared = np.repeat(generator.normal(0, 0.6, 60), 5) + generator.normal(0, 0.8, 300) > -0.5244
        clustered = mean_estimate(shared.astype(float), list(np.repeat(np.arange(60), 5)))
        tokens = generator.integers(200, 512, 64).astype(float)
        found = ratio_estimate(tokens * generator.gamma(9.0, 0.35, 64), tokens, np.exp, resamples=resamples, seed=seed)
        truths = (0.7, NORMAL.cdf(0.5244), math.exp(9.0 * 0.35))
        out.append([e.low <= t <= e.high for e, t in zip((plain, clustered, found), truths, strict=True)])
    return np.array(out, float)


def main() -> int:
    """Simulate, print every figure beside its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    begun, held = time.monotonic(), True
    seeds = [range(k, arguments.simulations, arguments.processes) for k in range(arguments.processes)]

    def told(name: str, value: float, low: float, high: float, peer: float = math.nan) -> bool:
        ok = low <= value <= high
        beside = "" if math.isnan(peer) else f"{100 * peer:10.2f} %"
        mark = "" if ok else "  MISSED"
        print(f"{name:<66} {100 * value:7.2f} % {100 * low:6.1f} to {100 * high:5.1f} %{beside}{mark}", flush=True)
        return ok

    print(f"{'figure':<66} {'ours':>9} {'bar':>17} {'unpaired z':>11}")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for case in CASES:
            run = partial(simulate, case, 0.0, arguments.resamples)
            found = np.concatenate(list(pool.map(run, seeds)))
            truth = 0.0
            kind = "McNemar" if not math.isnan(found[0, 5]) else "bootstrap"
            peer = float((found[:, 5] < 0.05).mean()) if not math.isnan(found[0, 5]) else math.nan
            if kind != "bootstrap":
                held &= told(
                    f"{case.name}: false findings, {kind}", float((found[:, 0] < 0.05).mean()), 0.0, 0.06, peer
                )
            held &= told(f"{case.name}: false findings, bootstrap", float((found[:, 1] < 0.05).mean()), 0.04, 0.06)
            inside = float(((found[:, 2] <= truth) & (truth <= found[:, 3])).mean())
            held &= told(f"{case.name}: intervals that hold", inside, 0.935, 0.965)
            effect = float(np.median(found[:, 4]))
            found = np.concatenate(list(pool.map(partial(simulate, case, effect, arguments.resamples), seeds)))
            peer = float((found[:, 5] < 0.05).mean()) if not math.isnan(found[0, 5]) else math.nan
            name = f"{case.name}: found of a true {effect:.4f}, {kind}"
            held &= told(name, float((found[:, 0] < 0.05).mean()), 0.77, 0.83, peer)
        names = ("accuracy (Wilson)", "accuracy over passages (clustered t)", "perplexity (bootstrap)")
        singles = np.concatenate(list(pool.map(partial(single_intervals, arguments.resamples), seeds)))
        for name, value in zip(names, singles.mean(axis=0), strict=True):
            held &= told(f"intervals that hold: {name}", float(value), 0.935, 0.965)
    seconds = time.monotonic() - begun
    print(f"{'every bar held' if held else 'A BAR IS MISSED'}; {arguments.simulations:,} simulations, {seconds:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
