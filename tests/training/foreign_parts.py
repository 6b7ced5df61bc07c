"""The source of a plugin that brings a component of every training kind; each leaves a witness of its use."""

PARTS = '''
from pathlib import Path
from typing import Literal

from pydantic import Field

from apt.training.sections import RewardSection, RolloutSection, Section, TeacherSection


class Witnessed(Section):
    witness: Path = Field(description="A folder; each component leaves a file in it when it is used.")

    def saw(self, kind):
        (self.witness / kind).touch()


class LossOptions(Witnessed):
    name: Literal["far-loss"] = "far-loss"
    pull: float = Field(default=0.5, ge=0.0, description="Weight of the teacher's word.")
    teacher: TeacherSection
    rollout: RolloutSection
    reward: RewardSection


class Loss:
    """Cross-entropy on what the model wrote itself, and the teacher's likeliest ids."""

    needs = frozenset({"tokenizer"})

    def __init__(self, options, resources):
        from apt.training.components import build

        self._options, self._tokenizer = options, resources.tokenizer
        self._teacher = build("teacher", options.teacher, resources)
        self._rollout = build("rollout", options.rollout, resources)
        self._reward = build("reward", options.reward, resources)

    def prepare(self, model, batch, *, rng, step):
        written = self._rollout.generate(model, [row[:2] for row in batch["input_ids"]], rng=rng)
        texts = [self._tokenizer.decode(row) for row in written.ids]
        return {"input_ids": written.ids, "labels": written.labels, "rewards": self._reward(texts, batch["meta"])}

    def __call__(self, model, batch, *, rng, step):
        import torch
        from torch.nn.functional import cross_entropy

        from apt.training.contract import LossOut, Metric, counted, weight_of

        self._options.saw("loss")
        mask = counted(batch["labels"])
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1][mask]
        theirs = self._teacher.targets(batch)
        loss = cross_entropy(logits, batch["labels"][:, 1:][mask], reduction="sum")
        loss = loss - self._options.pull * (theirs.weights * logits.log_softmax(-1).gather(-1, theirs.ids)).sum()
        rewards = torch.tensor(batch["rewards"], dtype=torch.float64)
        weight = weight_of(batch)
        metrics = {
            "loss/far": Metric(loss.detach(), weight),
            "reward/mean": Metric(rewards.sum(), torch.tensor(float(len(rewards)))),
        }
        return LossOut(loss, weight, metrics)


class TeacherOptions(Witnessed):
    name: Literal["far-teacher"] = "far-teacher"


class Teacher:
    """Says that the next id is 7, whatever it is asked."""

    needs = frozenset()
    offers = frozenset()

    def __init__(self, options, resources):
        self._options = options

    def targets(self, batch, *, rng=None, body=None):
        import torch

        from apt.training.contract import count
        from apt.training.teachers.contract import SparseTargets

        self._options.saw("teacher")
        n = int(count(batch))
        return SparseTargets(torch.full((n, 1), 7), torch.ones(n, 1), torch.zeros(n, 1))

    def body(self, batch, wanted):
        raise NotImplementedError


class RolloutOptions(Witnessed):
    name: Literal["far-rollout"] = "far-rollout"
    tokens: int = Field(default=6, ge=1, description="Written to each prompt.")


class Rollout:
    """Counts on by one."""

    needs = frozenset()

    def __init__(self, options, resources):
        self._options = options

    def generate(self, model, prompts, *, rng):
        import torch

        from apt.training.contract import IGNORED
        from apt.training.contract import Rollout as Written

        self._options.saw("rollout")
        ids = torch.stack([torch.cat([p, p[-1] + 1 + torch.arange(self._options.tokens)]) for p in prompts])
        labels = ids.clone()
        labels[:, : len(prompts[0])] = IGNORED
        return Written(ids, labels, torch.zeros(len(ids), dtype=torch.bool))


class RewardOptions(Witnessed):
    name: Literal["far-reward"] = "far-reward"


def reward(options, resources):
    def judge(texts, meta):
        options.saw("reward")
        return [1.0 if m["colour"] == "green" else 0.0 for m in meta]

    return judge


class DataOptions(Witnessed):
    name: Literal["far-data"] = "far-data"
    rows: int = Field(default=12, ge=1, description="Rows.")


class Rows:
    needs = frozenset({"tokenizer"})

    def __init__(self, options, resources):
        options.saw("data")
        self._n = options.rows

    def __len__(self):
        return self._n

    def __getitem__(self, index):
        import torch

        ids = 10 + index + torch.arange(8)
        labels = ids.clone()
        labels[0] = -100
        return {"input_ids": ids, "labels": labels}

    def length(self, index):
        return 8

    def part(self, index):
        return "far"

    def meta(self, index):
        return {"colour": "green" if index % 2 else "red"}

    def digest(self):
        return f"far {self._n}"


class SamplerOptions(Witnessed):
    name: Literal["far-sampler"] = "far-sampler"


class OddRows:
    """Odd rows only."""

    def __init__(self, options, source, *, batch_rows, seed):
        self._options, self._source, self._batch_rows, self._at = options, source, batch_rows, 1

    def __iter__(self):
        self._options.saw("sampler")
        odd = [i for i in range(len(self._source)) if self._source.meta(i)["colour"] == "green"]
        while True:
            batch = [odd[(self._at + k) % len(odd)] for k in range(self._batch_rows)]
            self._at += self._batch_rows
            yield batch

    def state_dict(self):
        return {"at": self._at}

    def load_state_dict(self, state):
        self._at = state["at"]


class OptimizerOptions(Witnessed):
    name: Literal["far-optimizer"] = "far-optimizer"
    lr: float = Field(default=0.25, gt=0.0, description="Learning rate.")


def optimizer(named_parameters, options):
    import torch

    options.saw("optimizer")
    return torch.optim.SGD([p for _, p in named_parameters if p.requires_grad], lr=options.lr)


class SchedulerOptions(Witnessed):
    name: Literal["far-scheduler"] = "far-scheduler"


def halved(step, total, options):
    options.saw("scheduler")
    return 0.5


class TuningOptions(Witnessed):
    name: Literal["far-tuning"] = "far-tuning"


class Norms:
    """Trains the norms and nothing else."""

    needs = frozenset()

    def __init__(self, options, resources):
        self._options = options

    def begin(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    def finish(self, model):
        self._options.saw("tuning")
        return model.requires_grad_(True)
'''

#: Kind → target and schema.
TARGETS = {
    "loss": ("Loss", "LossOptions"),
    "optimizer": ("optimizer", "OptimizerOptions"),
    "scheduler": ("halved", "SchedulerOptions"),
    "sampler": ("OddRows", "SamplerOptions"),
    "data": ("Rows", "DataOptions"),
    "tuning": ("Norms", "TuningOptions"),
    "teacher": ("Teacher", "TeacherOptions"),
    "rollout": ("Rollout", "RolloutOptions"),
    "reward": ("reward", "RewardOptions"),
}

_PLUGIN = """
from apt.plugins.base import Plugin


class Made(Plugin):
    name = "far-training"
    version = "1.0"
    description = "one component of every training kind"

    def register_components(self, registry):
"""


def plugin() -> str:
    """The plugin's class, which names the components themselves."""
    lines = [f'        registry.add_component("{k}", "far-{k}", {t}, {o})' for k, (t, o) in TARGETS.items()]
    return _PLUGIN + "\n".join(lines) + "\n"


def config(witness: str) -> str:
    """A config that names nothing of the core."""

    def section(kind: str, indent: int, *more: str) -> str:
        lines = [f"name: far-{kind}", f"witness: {witness}", *more]
        return "".join(f"{' ' * indent}{line}\n" for line in lines)

    inner = "".join(f"    {kind}:\n{section(kind, 6)}" for kind in ("teacher", "rollout", "reward"))
    outer = "".join(f"  {kind}:\n{section(kind, 4)}" for kind in ("optimizer", "scheduler", "sampler", "tuning"))
    return (
        f"data:\n  train:\n{section('data', 4, 'rows: 12')}"
        f"train:\n  loss:\n{section('loss', 4, 'pull: 0.25')}{inner}{outer}"
        "  steps: 3\n  batch_rows: 2\n  grad_accum: 2\n  eval_every: 3\n  eval_rows: 2\n  precision: fp32\n"
    )
