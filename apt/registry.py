"""Components: everything that a config or a recipe chooses by name.

A component is ``kind + name → target string + schema string``. Declaring one imports nothing; the target is
imported when it is used.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from apt.console.errors import NotFoundError, UsageError

#: Kinds of components and what a target of that kind is; a kind is listed once something looks it up.
KINDS: Final = {
    "operation": "what a command does; a function (options[, registry=]) -> result, callable as a recipe step",
    "loss": "a training loss; see apt.training.losses",
    "optimizer": "a function (named parameters, config) -> torch.optim.Optimizer",
    "scheduler": "a function (step, total steps, options) -> learning-rate factor",
    "sampler": "the order of the rows; a class (options, source, *, batch_rows, seed); see apt.training.contract",
    "data": "what is trained on; (options, resources) -> rows or a stream of rows; see apt.training.contract",
    "tuning": "which parameters are trained; a class (options, resources); see apt.training.contract",
    "teacher": "what a distillation learns from; a class (options, resources); see apt.training.teachers.contract",
    "rollout": "writes what follows prompts; a class (options, resources); see apt.training.contract",
    "reward": "judges what a model wrote; a class (options, resources); see apt.training.contract",
    "strategy": "a pruning strategy",
    "scorer": "a runtime for test and compare; a class, opened with a path; see apt.evaluation.scorers",
}


@dataclass(frozen=True, slots=True)
class Component:
    """One named thing.

    :param target: ``"package.module:attribute"``.
    :param schema: target string of the pydantic model that validates its options; ``""`` for none.
    :param plugin: canonical name of the plugin that brings it; ``""`` for the core.
    :param admit: called before the first import of foreign code; returns the component with targets that may be
        imported.
    """

    kind: str
    name: str
    target: str
    schema: str = ""
    summary: str = ""
    plugin: str = ""
    admit: "Callable[[], Component] | None" = field(default=None, compare=False, repr=False)

    def load(self) -> Any:
        """Import and return the target."""
        return load_target(self.admitted().target)

    def load_schema(self) -> Any:
        """Import and return the pydantic model of the options."""
        return load_target(self.admitted().schema)

    def admitted(self) -> "Component":
        """Return the component with targets that may be imported."""
        return self.admit() if self.admit is not None else self


def load_target(target: str) -> Any:
    """Import ``"package.module:attribute"``.

    :raises UsageError: when the string does not have that form or names nothing.
    """
    module, separator, attribute = target.partition(":")
    if not separator or not module or not attribute:
        raise UsageError(f"bad target {target!r}: expected 'package.module:attribute'")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(f"bad target {target!r}: {module} has no {attribute!r}") from None
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'?"`` for the nearest known word, or the list of the known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:  # of a short word, two letters in the wrong order or case are most of it
        near = [name for name in names if sorted(name.casefold()) == sorted(word.casefold())]
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else ""


class Registry:
    """Components by kind and name; the first to claim a name keeps it."""

    def __init__(self, components: Iterable[Component] = ()) -> None:
        self._components: dict[tuple[str, str], Component] = {}
        for component in components:
            self.add(component)

    def add(self, component: Component) -> None:
        """Register a component.

        :raises UsageError: for an unknown kind or a name that is taken.
        """
        if component.kind not in KINDS:
            raise UsageError(f"unknown component kind {component.kind!r}", hint=did_you_mean(component.kind, KINDS))
        key = (component.kind, component.name)
        if key in self._components:
            owner = self._components[key].plugin or "the core"
            raise UsageError(f"{component.kind} {component.name!r} is already registered by {owner}")
        self._components[key] = component

    def get(self, kind: str, name: str) -> Component:
        """Return a component.

        :raises NotFoundError: with the nearest known name.
        """
        try:
            return self._components[kind, name]
        except KeyError:
            raise NotFoundError(f"no {kind} is called {name!r}", hint=did_you_mean(name, self.names(kind))) from None

    def names(self, kind: str) -> list[str]:
        """Return the names of one kind, sorted."""
        return sorted(n for k, n in self._components if k == kind)

    def __iter__(self) -> Iterator[Component]:
        return iter(self._components.values())


#: What the core brings itself. Strings only: nothing here is imported until it is used.
CORE_COMPONENTS: Final = (
    Component(
        "operation",
        "sample-text",
        "apt.evaluation.operations:sample_text",
        "apt.evaluation.operations:SampleTextOptions",
        "sample disjoint calibration, train and held-out rows from a model",
    ),
    Component(
        "operation",
        "embedded-text",
        "apt.evaluation.operations:embedded_text",
        "apt.evaluation.operations:EmbeddedTextOptions",
        "write rows of the embedded texts",
    ),
    Component(
        "operation",
        "test",
        "apt.evaluation.operations:test",
        "apt.evaluation.operations:TestOptions",
        "check a model and measure its perplexity",
    ),
    Component(
        "operation",
        "compare",
        "apt.evaluation.operations:compare",
        "apt.evaluation.operations:CompareOptions",
        "compare models on the same rows",
    ),
    Component(
        "operation",
        "difference",
        "apt.checkpoint.difference:difference",
        "apt.checkpoint.difference:DifferenceOptions",
        "tell what of a checkpoint is new against another one",
    ),
    Component(
        "operation",
        "report",
        "apt.report.operation:report",
        "apt.report.operation:ReportOptions",
        "write results as one offline HTML page and as JSON",
    ),
    Component(
        "scorer",
        "transformers",
        "apt.evaluation.scorers:TransformersScorer",
        summary="checkpoints, and GGUF files with their values taken back to floats",
    ),
    Component(
        "loss",
        "ce",
        "apt.training.losses.ce:CrossEntropy",
        "apt.training.losses.ce:CrossEntropyOptions",
        "cross-entropy on the labels",
    ),
    Component(
        "loss",
        "distill",
        "apt.training.losses.distill:Distill",
        "apt.training.losses.distill:DistillLossOptions",
        "divergence from a teacher, with cross-entropy",
    ),
    Component(
        "optimizer",
        "adamw",
        "apt.training.optimizers.adamw:build",
        "apt.training.optimizers.adamw:AdamWOptions",
        "AdamW",
    ),
    Component(
        "optimizer",
        "muon",
        "apt.training.optimizers.muon:build",
        "apt.training.optimizers.muon:MuonOptions",
        "Muon for the layers' matrices, AdamW for the rest",
    ),
    Component(
        "scheduler",
        "cosine",
        "apt.training.schedulers:cosine",
        "apt.training.schedulers:CosineOptions",
        "linear warm-up, cosine decay",
    ),
    Component(
        "scheduler",
        "linear",
        "apt.training.schedulers:linear",
        "apt.training.schedulers:LinearOptions",
        "linear warm-up, constant, linear decay",
    ),
    Component(
        "scheduler",
        "constant",
        "apt.training.schedulers:constant",
        "apt.training.schedulers:ConstantOptions",
        "linear warm-up, constant",
    ),
    Component(
        "sampler",
        "sequential",
        "apt.training.samplers.epochs:Sequential",
        "apt.training.samplers.epochs:SequentialOptions",
        "the rows in their order",
    ),
    Component(
        "sampler",
        "shuffled",
        "apt.training.samplers.epochs:Shuffled",
        "apt.training.samplers.epochs:ShuffledOptions",
        "the rows in an order of their own in every epoch",
    ),
    Component(
        "tuning",
        "full",
        "apt.training.tuning.full:Full",
        "apt.training.tuning.full:FullOptions",
        "every parameter",
    ),
    Component(
        "teacher",
        "memory",
        "apt.training.teachers.memory:MemoryTeacher",
        "apt.training.teachers.memory:MemoryTeacherOptions",
        "a model in memory",
    ),
    Component(
        "data",
        "text",
        "apt.training.data.text:text",
        "apt.training.data.text:TextOptions",
        "windows of a plain text, or token rows",
    ),
    Component(
        "data",
        "jsonl",
        "apt.training.data.files:records",
        "apt.training.data.files:JsonlOptions",
        "JSON lines with a text, or with a prompt and its completion",
    ),
    Component(
        "data",
        "parquet",
        "apt.training.data.files:records",
        "apt.training.data.files:ParquetOptions",
        "Parquet with a text, or with a prompt and its completion",
    ),
    Component(
        "data",
        "chat",
        "apt.training.data.files:chat",
        "apt.training.data.files:ChatOptions",
        "conversations by the tokenizer's chat template",
    ),
    Component(
        "data",
        "mixture",
        "apt.training.data.mixture:Mixture",
        "apt.training.data.mixture:MixtureOptions",
        "several sources as one, each under its name",
    ),
    Component(
        "teacher",
        "cache",
        "apt.training.teachers.cache:CacheTeacher",
        "apt.training.teachers.cache:CacheTeacherOptions",
        "what a teacher said of the text, captured on disk",
    ),
    Component(
        "loss",
        "multi_task",
        "apt.training.losses.multi_task:MultiTask",
        "apt.training.losses.multi_task:MultiTaskOptions",
        "several losses, each on the rows of its parts",
    ),
    Component(
        "loss",
        "policy",
        "apt.training.losses.policy:Policy",
        "apt.training.losses.policy:PolicyOptions",
        "rewards of the model's own continuations (RLOO)",
    ),
    Component(
        "rollout",
        "sample",
        "apt.training.rollouts.sample:SampleRollout",
        "apt.training.rollouts.sample:SampleOptions",
        "the model's own continuations, sampled",
    ),
    Component(
        "reward",
        "exact_answer",
        "apt.training.rewards.exact_answer:ExactAnswer",
        "apt.training.rewards.exact_answer:ExactAnswerOptions",
        "whether the final answer is the right one",
    ),
    Component(
        "operation",
        "train",
        "apt.plugins.training:train",
        "apt.training.job:TrainOptions",
        "train a model as a config says",
    ),
    Component(
        "loss",
        "focal",
        "apt.training.losses.focal:Focal",
        "apt.training.losses.focal:FocalOptions",
        "cross-entropy that counts well-known tokens less",
    ),
    Component(
        "optimizer",
        "adafactor",
        "apt.training.optimizers.adafactor:build",
        "apt.training.optimizers.adafactor:AdafactorOptions",
        "Adafactor: second moments of a matrix by row and column",
    ),
    Component(
        "sampler",
        "length_grouped",
        "apt.training.samplers.length_grouped:LengthGrouped",
        "apt.training.samplers.length_grouped:LengthGroupedOptions",
        "batches of rows of like length",
    ),
    Component(
        "sampler",
        "mixture",
        "apt.training.samplers.mixture:MixtureSampler",
        "apt.training.samplers.mixture:MixtureSamplerOptions",
        "rows of several parts by weights",
    ),
    Component(
        "sampler",
        "curriculum",
        "apt.training.samplers.curriculum:Curriculum",
        "apt.training.samplers.curriculum:CurriculumOptions",
        "easy rows first",
    ),
    Component(
        "tuning",
        "lora",
        "apt.training.tuning.lora:Lora",
        "apt.training.tuning.lora:LoraOptions",
        "low-rank adapters, merged at the end",
    ),
    Component(
        "tuning",
        "frozen",
        "apt.training.tuning.frozen:Frozen",
        "apt.training.tuning.frozen:FrozenOptions",
        "some parameters; the others stay as they are",
    ),
)
