"""A package that brings one component of every kind, by its entry point; a config alone puts them to work."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

KINDS_OF_TRAINING = ("loss", "optimizer", "scheduler", "sampler", "data", "tuning", "teacher", "rollout", "reward")

PLUGIN = """
from apt.plugins.base import Plugin

_PARTS = {
    "loss": ("Loss", "LossOptions"), "optimizer": ("optimizer", "OptimizerOptions"),
    "scheduler": ("falling", "FallingOptions"), "sampler": ("Backwards", "BackwardsOptions"),
    "data": ("letters", "LettersOptions"), "tuning": ("Norms", "NormsOptions"),
    "teacher": ("Echo", "EchoOptions"), "rollout": ("Repeat", "RepeatOptions"), "reward": ("Short", "ShortOptions"),
}

class Made(Plugin):
    name = "studio"
    version = "1.0"
    description = "one component of every kind"

    def register_components(self, registry):
        for kind, (target, schema) in _PARTS.items():
            where = "studio_plugin.parts"
            registry.add_component(kind, f"studio-{kind}", f"{where}:{target}", f"{where}:{schema}", "made elsewhere")
"""

PARTS = '''
import os

import torch
from pydantic import Field

from apt.training.contract import IGNORED, LossOut, Metric, Rollout, weight_of
from apt.training.data.rows import TokenRows
from apt.training.forward import last_hidden, run_body, targets_of
from apt.training.losses.head import Head
from apt.training.samplers.epochs import Epochs
from apt.training.sections import Section
from apt.training.teachers.contract import DenseTargets


def used(kind):
    with open(os.environ["STUDIO_LOG"], "a") as log:
        print(kind, file=log)


class LossOptions(Section):
    margin: float = Field(ge=0.0)

class Loss:
    """The margin by which the right token's logit lacks behind the largest."""
    needs = frozenset({"tokenizer"})

    def __init__(self, options, resources):
        self.margin = options.margin

    def __call__(self, model, batch, *, rng, step):
        used("loss")
        head = Head.of(model)
        logits = head.logits(last_hidden(model, batch), head.weight)
        right = logits.gather(1, targets_of(batch)[:, None])[:, 0]
        behind = (logits.amax(-1) - right + self.margin).clamp(min=0)
        weight = weight_of(batch)
        return LossOut(behind.sum(), weight, {"studio/behind": Metric(behind.detach().sum(), weight)})


class OptimizerOptions(Section):
    lr: float

def optimizer(parameters, options):
    used("optimizer")
    return torch.optim.SGD([p for _, p in parameters if p.requires_grad], lr=options.lr)


class FallingOptions(Section):
    steepness: float = 1.0

def falling(step, total, options):
    used("scheduler")
    return (1 - step / (total + 1)) ** options.steepness


class BackwardsOptions(Section):
    pass

class Backwards(Epochs):
    def __init__(self, options, source, *, batch_rows, seed):
        super().__init__(len(source), batch_rows)

    def order(self, epoch):
        used("sampler")
        return list(range(self._n_rows))[::-1]


class LettersOptions(Section):
    text: str
    rows: int = Field(ge=2)

def letters(options, resources):
    used("data")
    ids = torch.tensor([resources.tokenizer(options.text)["input_ids"]] * options.rows)
    labels = ids.clone()
    labels[:, :2] = IGNORED
    return TokenRows(ids, labels)

letters.needs = frozenset({"tokenizer"})


class NormsOptions(Section):
    pass

class Norms:
    """Only the norms are trained."""
    def __init__(self, options, resources): ...

    def begin(self, model):
        used("tuning")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    def finish(self, model):
        return model.requires_grad_(True)


class EchoOptions(Section):
    pass

class Echo:
    needs = frozenset({"teacher"})
    offers = frozenset()

    def __init__(self, options, resources):
        self.model = resources.teacher

    def targets(self, batch, *, rng=None, body=None):
        used("teacher")
        with torch.no_grad():
            return DenseTargets(run_body(self.model, batch).last, Head.of(self.model))

    def body(self, batch, wanted):
        raise NotImplementedError


class RepeatOptions(Section):
    times: int = Field(ge=1)

class Repeat:
    """Continues a prompt by some of its own tokens."""
    def __init__(self, options, resources):
        self.times = options.times

    def generate(self, model, prompts, *, rng):
        used("rollout")
        rows = []
        for prompt in prompts:
            drawn = torch.randint(len(prompt), (self.times,), generator=rng)
            rows.append(torch.cat([prompt, prompt[drawn.to(prompt.device)]]))
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.full_like(ids, IGNORED)
        for row, prompt in enumerate(prompts):
            labels[row, len(prompt) : len(prompt) + self.times] = ids[row, len(prompt) : len(prompt) + self.times]
        return Rollout(ids, labels, torch.zeros(len(prompts), dtype=torch.bool))


class ShortOptions(Section):
    pass

class Short:
    def __init__(self, options, resources): ...

    def __call__(self, texts, meta):
        used("reward")
        return [-float(len(text)) for text in texts]
'''

CONFIG = """\
data:
  train:
    name: studio-data
    text: The quick brown fox jumps over the lazy dog.
    rows: 12
train:
  loss:
    name: multi_task
    tasks:
      behind:
        loss:
          name: studio-loss
          margin: 0.5
      taught:
        loss:
          name: distill
          teacher:
            name: studio-teacher
      judged:
        weight: 0.1
        loss:
          name: policy
          samples: 2
          rollout:
            name: studio-rollout
            times: 3
          rewards:
            short:
              reward:
                name: studio-reward
  optimizer:
    name: studio-optimizer
    lr: 0.01
  scheduler:
    name: studio-scheduler
    steepness: 2.0
  sampler:
    name: studio-sampler
  tuning:
    name: studio-tuning
  steps: 3
  batch_rows: 2
  eval_every: 3
  eval_rows: 4
  precision: fp32
"""


def _plugin_tests() -> ModuleType:
    """What the plugins' tests make wheels and environments with; the tests' folders are no packages."""
    path = Path(__file__).parents[1] / "plugins" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tests_plugins_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def studio(tmp_path: Path):
    """An environment in which the package is installed."""
    import zipfile

    helpers = _plugin_tests()
    environment = helpers.Isolated(tmp_path / "env")
    files = {"studio_plugin/parts.py": PARTS}
    wheel = helpers.write_wheel(
        "studio-plugin", plugin="studio", source=PLUGIN, files=files, directory=tmp_path / "wheels"
    )
    zipfile.ZipFile(wheel).extractall(environment.site)
    environment.json("plugin", "try", "studio")
    environment.variables["STUDIO_LOG"] = str(tmp_path / "used.txt")
    return environment


def test_one_component_of_every_kind_is_chosen_by_the_config_alone(studio, llama_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "studio.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    checked = studio.json("config", "validate", config)
    assert {f"{kind} studio-{kind}" for kind in KINDS_OF_TRAINING} <= set(checked["configs"][0]["components"])
    words = ("train", "--config", config, "--model", llama_dir, "--teacher", llama_dir, "-o", tmp_path / "out")
    report = studio.json(*words)
    assert report["steps"] == 3
    assert report["metrics"]["studio/behind/behind"] > 0 > report["metrics"]["reward/judged/mean"]
    assert set((tmp_path / "used.txt").read_text().split()) == set(KINDS_OF_TRAINING)
    resolved = json.loads((tmp_path / "out" / "apt.json").read_text())["options"]["config"]
    assert resolved["train"]["optimizer"] == {"name": "studio-optimizer", "lr": 0.01}


def test_its_options_are_checked_with_the_rest(studio, tmp_path: Path) -> None:
    config = tmp_path / "studio.yaml"
    text = (
        CONFIG.replace("times: 3", "tims: 3")
        .replace("margin: 0.5", "margin: -1")
        .replace("studio-sampler", "studio-sample")
    )
    config.write_text(text, encoding="utf-8")
    told = studio.json("config", "validate", config, code=2)["faults"]
    assert [f["message"].partition(": ")[0].rpartition(".")[2] for f in told] == ["margin", "tims", "name"]
    assert told[-1]["hint"] == "did you mean 'studio-sampler'?"
