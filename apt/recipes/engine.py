"""The engine: plans a recipe, runs what is not yet done, remembers each result.

A step is done when its record's key equals the key that it would have now and its outputs are as it left them. A run
that is killed leaves the records of what it finished; the next one begins there.
"""

import gc
import inspect
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from apt import events
from apt.checkpoint.lock import locked
from apt.console import output
from apt.console.errors import AptError, CheckFailedError, TargetExistsError, explain
from apt.console.output import to_jsonable
from apt.document import DocumentError, Problem
from apt.options import Input
from apt.recipes import references
from apt.recipes.conditions import Condition, ConditionFault
from apt.recipes.digests import Digests
from apt.recipes.fields import marked
from apt.recipes.keys import StepKey, output_path, step_key
from apt.recipes.records import Records, StepRecord, fault_of, witness
from apt.recipes.references import ReferenceFault
from apt.recipes.results import Action, Plan, PlannedStep, RunResult, StepOutcome
from apt.recipes.schema import Recipe, Step, read_recipe
from apt.recipes.validation import describe, option_errors, validate
from apt.registry import Component, Registry


class ExpectationError(CheckFailedError):
    """A step ended well, but not as the recipe expects; ``result`` is the run up to and with this step."""

    result: RunResult | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A step whose references are resolved."""

    component: Component
    options: BaseModel
    key: StepKey
    record: StepRecord | None


class Engine:
    """One recipe with its inputs, its operations and its output directory.

    :param path: the recipe file.
    :param registry: where the operations are looked up.
    :param settings: inputs given by the user, as text.
    :param out: the output directory; made when something runs.
    :raises DocumentError: when anything in the recipe is wrong; nothing has run then.
    """

    def __init__(self, path: Path, registry: Registry, *, settings: Mapping[str, str], out: Path) -> None:
        self.out = out.expanduser().absolute()
        self._registry = registry
        self._recipe: Recipe = read_recipe(path, settings)
        validate(self._recipe, registry, self.out)
        self._records = Records(self.out)
        self._digests = Digests(self._records.directory / "digests.json")

    def plan(self, *, force: bool = False) -> Plan:
        """Say which steps would run and why; writes nothing.

        :raises NotFoundError: when something that a step reads does not exist.
        :raises TargetExistsError: when a step would replace what this recipe did not make.
        """
        results: dict[str, Any] = {}
        producers: dict[Path, str] = {}
        planned: list[PlannedStep] = []
        for step in self._recipe.active_steps:
            entry, result = self._plan_step(step, results, producers, force=force)
            planned.append(entry)
            if entry.action == "cached":
                results[step.name] = result
        return Plan(self._recipe.name, self.out, tuple(planned))

    def run(self, *, force: bool = False, narrate: Callable[[str], None] = output.note) -> RunResult:
        """Run what is not yet done.

        :param force: run every step, done or not.
        :param narrate: told a line at each step's beginning and end.
        :raises AptError: what a step raises, with its name; a failed expectation as :class:`ExpectationError`.
        """
        self.plan(force=force)  # a missing input or a foreign target is told before anything runs
        begun = time.monotonic()
        outcomes: list[tuple[StepOutcome, StepRecord]] = []
        failed: ExpectationError | None = None
        busy, hint = f"another run is at work in {self.out}", "wait for it, or give another --out"
        with locked(self._records.directory, busy=busy, hint=hint):
            try:
                self._run_steps(force, narrate, outcomes)
            except ExpectationError as error:
                failed = error
            finally:
                self._digests.save()
        seconds = round(time.monotonic() - begun, 2)
        tables = outcomes[-1][1].tables
        result = RunResult(self._recipe.name, self.out, seconds, tuple(o for o, _ in outcomes), tables)
        if failed is not None:
            failed.result = result
            raise failed
        return result

    def _run_steps(
        self, force: bool, narrate: Callable[[str], None], outcomes: list[tuple[StepOutcome, StepRecord]]
    ) -> None:
        """Bring the steps up to date one by one; each goes to ``outcomes`` when it is."""
        results: dict[str, Any] = {}
        steps = self._recipe.active_steps
        for number, step in enumerate(steps, start=1):
            label = f"[{number:>{len(str(len(steps)))}}/{len(steps)}] {step.name}"
            prepared = self._prepare(step, results)
            reason = "forced" if force else self._reason_to_run(prepared)
            record = prepared.record
            if record is None or reason:
                narrate(f"{label}: {step.operation} ({reason})")
                record = self._execute(step, prepared)
                narrate(f"{label}: done in {record.seconds:.1f} s")
            else:
                narrate(f"{label}: unchanged")
            action: Action = "run" if reason else "cached"
            outcome = StepOutcome(step.name, step.operation, action, reason, record.seconds, record.key, record.result)
            outcomes.append((outcome, record))
            results[step.name] = record.result
            self._check_expectations(step, results)

    def _plan_step(
        self, step: Step, results: dict[str, Any], producers: dict[Path, str], *, force: bool
    ) -> tuple[PlannedStep, Any]:
        waits = self._waits_for(step, results)
        options = None if waits else self._options(step, results)
        if options is not None:
            fields = marked(options)
            waits = next((p for f in fields if isinstance(f.mark, Input) and (p := _made(f.value, producers))), "")
            producers.update({output_path(f): step.name for f in fields if not isinstance(f.mark, Input)})
        if waits or options is None:
            self._look_ahead(step, producers)
            return PlannedStep(step.name, step.operation, "run", "forced" if force else f"follows {waits}"), None
        prepared = self._prepare(step, results, options)
        _refuse_foreign(step, prepared.key.outputs, prepared.record)
        reason = "forced" if force else self._reason_to_run(prepared)
        if reason or prepared.record is None:
            return PlannedStep(step.name, step.operation, "run", reason), None
        for path in prepared.key.outputs:
            producers.pop(path, None)
        return PlannedStep(step.name, step.operation, "cached", "unchanged"), prepared.record.result

    def _look_ahead(self, step: Step, producers: dict[Path, str]) -> None:
        """Check what is known already of a step that waits for another: its inputs exist, its outputs are free."""
        scope = {"inputs": self._recipe.inputs, "out": str(self.out)}
        resolved = references.resolve(step.options, scope, keep_steps=True)
        schema = self._registry.get("operation", step.operation).load_schema()
        if option_errors(schema, resolved):
            return  # a value that is still a reference stands where no text may stand
        ours = self._records.read(step.name)
        for found in marked(schema.model_validate_json(output.to_json(resolved), strict=True)):
            if "${" in found.value:
                continue
            if not isinstance(found.mark, Input):
                _refuse_foreign(step, [output_path(found)], ours)
                producers[output_path(found)] = step.name
            elif not _made(found.value, producers):
                self._digests.input(found.mark.what, found.value)

    def _waits_for(self, step: Step, results: dict[str, Any]) -> str:
        """Name an earlier step that this one reads and whose result is not known; ``""`` for none."""
        earlier = [s.name for s in self._recipe.active_steps]
        for _, text in references.strings(step.options):
            for reference in references.parse(text):
                if reference.step is not None and reference.step not in results:
                    return reference.step
                if reference.reads_steps and reference.step is None:
                    unknown = [n for n in earlier[: earlier.index(step.name)] if n not in results]
                    if unknown:
                        return unknown[0]
        return ""

    def _options(self, step: Step, results: dict[str, Any]) -> BaseModel:
        """Resolve and validate a step's options.

        :raises DocumentError: when a result does not fit the option that refers to it.
        """
        place = (*step.location, "with")
        schema = self._registry.get("operation", step.operation).load_schema()
        scope = {"inputs": self._recipe.inputs, "out": str(self.out), "steps": results}
        document = self._recipe.document
        try:
            resolved = references.resolve(step.options, scope)
        except ReferenceFault as fault:
            raise DocumentError([Problem(document.file, document.line(place), fault.message, fault.hint)]) from None
        problems = []
        for error in option_errors(schema, resolved):
            message, hint = describe(error, schema, step)
            problems.append(Problem(document.file, document.line((*place, *error["loc"])), message, hint))
        if problems:
            raise DocumentError(problems)
        options = schema.model_validate_json(output.to_json(resolved), strict=True)
        assert isinstance(options, BaseModel)
        return options

    def _prepare(self, step: Step, results: dict[str, Any], options: BaseModel | None = None) -> _Prepared:
        component = self._registry.get("operation", step.operation)
        component.load()
        options = options or self._options(step, results)
        return _Prepared(component, options, step_key(component, options, self._digests), self._records.read(step.name))

    def _reason_to_run(self, prepared: _Prepared) -> str:
        record, key = prepared.record, prepared.key
        if record is None:
            return "not yet run"
        if record.status != "done":
            return "was interrupted"
        if record.key != key.digest:
            return key.difference(record.parts) or "changed"
        faults = (fault_of(Path(p), w, self._digests) for p, w in record.outputs.items())
        return next((f for f in faults if f), "")

    def _execute(self, step: Step, prepared: _Prepared) -> StepRecord:
        _refuse_foreign(step, prepared.key.outputs, prepared.record)
        key = prepared.key
        claims = {str(p): None for p in key.outputs}
        started = StepRecord(step.operation, "started", key.digest, key.parts, claims)
        self._records.write(step.name, started)
        options = self._making_room(prepared)
        begun = time.monotonic()
        result = _call(step, prepared.component, options, self._registry)
        seconds = round(time.monotonic() - begun, 3)
        gc.collect()
        for path in key.outputs:
            if not path.exists():
                raise AptError(f"step {step.name!r}: operation {step.operation!r} ended without writing {path}")
        written = {str(p): witness(p, self._digests) for p in key.outputs}
        record = StepRecord(
            step.operation, "done", key.digest, key.parts, written, seconds, to_jsonable(result), tuple(result.tables())
        )
        self._records.write(step.name, record)
        return record

    def _making_room(self, prepared: _Prepared) -> BaseModel:
        """Let the operation replace our own earlier output, or take it away where it cannot."""
        options = prepared.options
        if "overwrite" in type(options).model_fields:
            return options.model_copy(update={"overwrite": True})
        for path in prepared.key.outputs:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return options

    def _check_expectations(self, step: Step, results: dict[str, Any]) -> None:
        scope = {"inputs": self._recipe.inputs, "out": str(self.out), "steps": results}
        for i, condition in enumerate(step.expect):
            fault = _fault_of(condition, scope, results[step.name])
            if fault:
                line = self._recipe.document.line((*step.location, "expect", i))
                raise ExpectationError(f"step {step.name!r}: {fault}", hint=f"{self._recipe.document.file}:{line}")


def _refuse_foreign(step: Step, outputs: Iterable[Path], record: StepRecord | None) -> None:
    """Never replace a file that no earlier run of this step has made.

    :raises TargetExistsError: when one is there.
    """
    ours = record.outputs if record else {}
    for path in outputs:
        if path.exists() and str(path) not in ours:
            raise TargetExistsError(
                f"{path} exists, and step {step.name!r} did not make it", hint="move it away, or give another --out"
            )


def _fault_of(condition: Condition, scope: Mapping[str, Any], result: Any) -> str:
    try:
        if condition.holds(scope, result):
            return ""
        left, right = condition.values(scope, result)
    except ConditionFault as fault:
        return fault.message
    return f"expected {condition.left} {condition.operator} {right!r}, but it is {left!r}"


def _made(value: str, producers: dict[Path, str]) -> str | None:
    """Name the step that is going to write an input; ``None`` when none is."""
    path = Path(value).expanduser().absolute()
    return next((name for made, name in producers.items() if path.is_relative_to(made)), None)


def _call(step: Step, component: Component, options: BaseModel, registry: Registry) -> Any:
    """Call the operation, telling the plugins before and after.

    :param registry: given to an operation that takes one (``compare`` looks runtimes up in it).
    :raises AptError: with the step's name in front.
    """
    told = options.model_dump(mode="json")
    events.announce("before_operation", operation=step.operation, options=told)
    begun = time.monotonic()
    error: BaseException | None = None
    try:
        operation = component.load()
        if "registry" in inspect.signature(operation).parameters:
            return operation(options, registry=registry)
        return operation(options)
    except BaseException as raised:
        error = raised
        known = explain(raised)
        if known is None:
            raise
        known.message = f"step {step.name!r}: {known.message}"
        raise known from (None if known is raised else raised)
    finally:
        seconds = time.monotonic() - begun
        events.announce("after_operation", operation=step.operation, options=told, seconds=seconds, error=error)
