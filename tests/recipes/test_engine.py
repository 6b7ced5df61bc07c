"""Steps run once: keys, caching, interruption, outputs, expectations."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apt import events
from apt.console.errors import CheckFailedError, ExitCode, NotFoundError, TargetExistsError, UsageError
from apt.document import DocumentError
from apt.recipes.engine import Engine
from apt.recipes.records import Records

CHAIN = """\
inputs: {text: hello, mode: plain, foreign: FOREIGN}
steps:
  - {name: a, operation: write, with: {output: "${out}/a.txt", text: "${inputs.text}"}}
  - {name: b, operation: write, with: {output: "${out}/b.txt", text: beta}}
  - name: c
    operation: join
    with: {output: "${out}/c.txt", files: ["${steps.a.path}", "${inputs.foreign}"], mode: "${inputs.mode}"}
  - {name: d, operation: join, with: {output: "${out}/d.txt", files: ["${steps.c.path}", "${steps.b.path}"]}}
"""


@pytest.fixture
def chain(lab):
    foreign = lab.root / "foreign.txt"
    foreign.write_text("!")
    return lab.recipe(CHAIN.replace("FOREIGN", str(foreign)))


def run(lab, path, force=False, **settings):
    """Run and return which steps ran, by name."""
    lab.calls()
    result = Engine(path, lab.registry, settings=settings, out=lab.out).run(force=force, narrate=lambda line: None)
    ran = [s.name for s in result.steps if s.action == "run"]
    assert [name[0] for name in lab.calls()] == ran
    return ran


def test_a_run_leaves_its_outputs_and_a_second_one_runs_nothing(lab, chain):
    assert run(lab, chain) == ["a", "b", "c", "d"]
    assert (lab.out / "d.txt").read_text() == "hello!1.0beta1.0"
    before = {p: p.stat().st_mtime_ns for p in lab.out.glob("*.txt")}
    assert run(lab, chain) == []
    assert {p: p.stat().st_mtime_ns for p in lab.out.glob("*.txt")} == before


def test_results_are_the_same_whether_a_step_ran_or_not(lab, chain):
    engine = Engine(chain, lab.registry, settings={}, out=lab.out)
    first, second = engine.run(), engine.run()
    assert [s.result for s in first.steps] == [s.result for s in second.steps]
    assert first.steps[0].result == {
        "path": str(lab.out / "a.txt"), "size_bytes": 5, "lines": [3, 5], "score": None,
    }  # fmt: skip
    assert [s.seconds for s in first.steps] == [s.seconds for s in second.steps]
    assert second.tables()[-1] == first.tables()[-1]
    assert second.tables()[-1].rows[0][0] == "d.txt"


def test_a_changed_option_runs_its_step_and_what_follows_from_it(lab, chain):
    run(lab, chain)
    assert run(lab, chain, mode="loud") == ["c", "d"]
    assert (lab.out / "d.txt").read_text() == "HELLO!1.0beta1.0"
    assert run(lab, chain, text="bye", mode="loud") == ["a", "c", "d"]


def test_a_step_that_gives_the_same_output_again_disturbs_nobody(lab, chain):
    run(lab, chain)
    lab.source.write_text(lab.source.read_text() + "\n# a remark\n")
    lab.reload()
    assert run(lab, chain) == ["a", "b", "c", "d"]  # the source of their package changed
    (lab.out / "a.txt").unlink()
    assert run(lab, chain) == ["a"]  # and c, d read the same bytes as before


def test_a_changed_input_file_counts_by_its_bytes(lab, chain):
    run(lab, chain)
    foreign = lab.root / "foreign.txt"
    os.utime(foreign, (1, 1))
    assert run(lab, chain) == []
    foreign.write_text("?")
    assert run(lab, chain) == ["c", "d"]


@pytest.mark.parametrize("how", ["touched", "changed", "gone"])
def test_outputs_are_looked_at(lab, chain, how):
    run(lab, chain)
    target = lab.out / "c.txt"
    if how == "touched":
        os.utime(target, (1, 1))
    elif how == "changed":
        target.write_text("someone else's")
    else:
        target.unlink()
    assert run(lab, chain) == ([] if how == "touched" else ["c"])
    assert target.read_text() == "hello!1.0"


def test_a_model_counts_by_its_contents_not_its_lineage(lab, llama_dir, tmp_path):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(llama_dir, model)
    text = """\
    steps:
      - {name: m, operation: join, with: {output: "${out}/m.txt", files: [], model: MODEL}}
    """
    path = lab.recipe(text.replace("MODEL", str(model)))
    assert run(lab, path) == ["m"]
    (model / "apt.json").write_text('{"made": "later"}')
    assert run(lab, path) == []
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert run(lab, path) == ["m"]


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_another_version_of_torch_or_transformers_runs_all(lab, chain, library, monkeypatch):
    run(lab, chain)
    from apt.recipes import keys

    versions = {**keys._versions(), library: "99.0"}
    monkeypatch.setattr(keys, "_versions", lambda: versions)
    plan = Engine(chain, lab.registry, settings={}, out=lab.out).plan()
    assert [s.action for s in plan.steps] == ["run"] * 4
    assert plan.steps[0].reason == f"version of {library} changed"


def test_shared_source_is_part_of_the_key(lab, chain, monkeypatch):
    run(lab, chain)
    from apt.recipes import keys

    monkeypatch.setattr(keys, "_shared_source", lambda: {"apt.evaluation": "other"})
    assert run(lab, chain) == ["a", "b", "c", "d"]


def test_force(lab, chain):
    run(lab, chain)
    assert run(lab, chain, force=True) == ["a", "b", "c", "d"]


def test_the_plan_says_what_and_why_and_writes_nothing(lab, chain):
    def plan(**settings):
        steps = Engine(chain, lab.registry, settings=settings, out=lab.out).plan().steps
        return {s.name: (s.action, s.reason) for s in steps}

    assert plan() == {
        "a": ("run", "not yet run"),
        "b": ("run", "not yet run"),
        "c": ("run", "follows a"),
        "d": ("run", "follows c"),
    }
    assert not lab.out.exists()
    run(lab, chain)
    assert set(plan().values()) == {("cached", "unchanged")}
    assert plan(mode="loud") == {
        "a": ("cached", "unchanged"),
        "b": ("cached", "unchanged"),
        "c": ("run", "option mode changed"),
        "d": ("run", "follows c"),
    }
    (lab.root / "foreign.txt").write_text("?")
    assert plan()["c"] == ("run", "content of files.1 changed")
    assert lab.calls() == []


def test_a_step_may_read_an_earlier_output_by_its_path(lab):
    text = """\
    steps:
      - {name: a, operation: write, with: {output: "${out}/a.txt"}}
      - {name: b, operation: join, with: {output: "${out}/b.txt", files: ["${out}/a.txt"]}}
    """
    path = lab.recipe(text)
    plan = Engine(path, lab.registry, settings={}, out=lab.out).plan()
    assert plan.steps[1].reason == "follows a"
    assert run(lab, path) == ["a", "b"]
    assert run(lab, path) == []


KILLED = """\
import sys
from pathlib import Path
from apt.recipes import keys
from apt.recipes.engine import Engine
from apt.registry import Component, Registry
keys._shared_source = dict
root, package, recipe = sys.argv[1:]
sys.path.insert(0, root)
module = f"{package}.operations"
registry = Registry([Component("operation", n, f"{module}:{n}", f"{module}:{s}")
                     for n, s in (("write", "WriteOptions"), ("join", "JoinOptions"))])
Engine(Path(recipe), registry, settings={}, out=Path(root) / "out").run()
"""


def test_a_killed_run_leaves_only_the_rest_to_do(lab, chain):
    gate = lab.root / "gate"
    path = lab.recipe(chain.read_text().replace('mode: "${inputs.mode}"', f'mode: plain, wait_for: "{gate}"'))
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(lab.root), lab.package, str(path)],
        stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (lab.root / "waiting").exists():
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(UsageError, match="another run is at work"):
            Engine(path, lab.registry, settings={}, out=lab.out).run()
        child.send_signal(signal.SIGKILL)
        talk = child.communicate()[1]
    finally:
        child.kill()
        child.wait()
    assert "[3/4] c: join (not yet run)" in talk
    plan = Engine(path, lab.registry, settings={}, out=lab.out).plan()
    assert [(s.action, s.reason) for s in plan.steps[:3]] == [
        ("cached", "unchanged"), ("cached", "unchanged"), ("run", "was interrupted"),
    ]  # fmt: skip
    gate.touch()
    assert run(lab, path) == ["c", "d"]
    assert (lab.out / "d.txt").read_text() == "hello!1.0beta1.0"
    assert not [p for p in lab.out.rglob(".*") if p.name not in (".apt",)]


def test_what_the_recipe_did_not_make_is_never_replaced(lab, chain):
    lab.out.mkdir()
    (lab.out / "b.txt").write_text("precious")
    with pytest.raises(TargetExistsError, match="step 'b' did not make it"):
        run(lab, chain, force=True)
    assert lab.calls() == []
    assert (lab.out / "b.txt").read_text() == "precious"


def test_a_missing_input_is_told_before_anything_runs(lab, chain):
    (lab.root / "foreign.txt").unlink()
    text = chain.read_text().replace("${steps.a.path}", "${inputs.foreign}")
    with pytest.raises(NotFoundError, match=r"foreign.txt"):
        run(lab, lab.recipe(text))
    assert lab.calls() == []


def test_a_failed_step_stops_the_run_and_names_itself(lab, chain):
    text = chain.read_text()
    path = lab.recipe(text.replace("{name: b, operation: write", "{name: b, operation: fail"))
    with pytest.raises(CheckFailedError, match=r"step 'b': the figures are bad \(try again\)") as caught:
        run(lab, path)
    assert caught.value.exit_code == ExitCode.CHECK_FAILED
    assert lab.calls() == ["a.txt"]
    assert run(lab, lab.recipe(text)) == ["b", "c", "d"]


def test_an_operation_that_writes_nothing_is_found_out(lab):
    path = lab.recipe('steps: [{name: a, operation: lie, with: {output: "${out}/a.txt"}}]')
    with pytest.raises(Exception, match=r"ended without writing .*a.txt"):
        run(lab, path)
    with pytest.raises(Exception, match=r"ended without writing"):
        run(lab, path)


def test_expectations_hold_on_every_run(lab):
    text = """\
    inputs: {limit: 10}
    steps:
      - name: a
        operation: write
        with: {output: "${out}/a.txt", text: hello}
        expect: ["size_bytes <= ${inputs.limit}", "lines.0 == 3"]
    """
    path = lab.recipe(text)
    assert run(lab, path) == ["a"]
    for _ in range(2):
        with pytest.raises(CheckFailedError, match="step 'a': expected size_bytes <= 4, but it is 5") as caught:
            run(lab, path, limit="4")
        assert caught.value.hint == f"{path}:6"
    with pytest.raises(CheckFailedError, match="score has no value"):
        run(lab, lab.recipe(text.replace("lines.0 == 3", "score <= 3")))


def test_a_result_that_does_not_fit_an_option_is_told_with_its_line(lab):
    text = """\
    steps:
      - {name: a, operation: write, with: {output: "${out}/a.txt"}}
      - name: b
        operation: write
        with:
          output: "${out}/b.txt"
          times: ${steps.a.score}
    """
    with pytest.raises(DocumentError, match=r"recipe.yaml:7: option 'times' of step 'b'"):
        run(lab, lab.recipe(text))


def test_all_results_together(lab):
    text = """\
    steps:
      - {name: a, operation: write, with: {output: "${out}/a.txt"}}
      - {name: b, operation: join, with: {output: "${out}/b.txt", files: [], extra: {all: "${steps}", lit: "$${x}"}}}
    """
    path = lab.recipe(text)
    plan = Engine(path, lab.registry, settings={}, out=lab.out).plan()
    assert plan.steps[1].reason == "follows a"
    assert run(lab, path) == ["a", "b"]
    extra = Records(lab.out).read("b").parts["options"]["extra"]
    assert extra["all"]["a"]["size_bytes"] == 5
    assert extra["lit"] == "${x}"


def test_a_damaged_record_means_that_the_step_runs_again(lab, chain):
    run(lab, chain)
    Records(lab.out).path("b").write_text("{")
    with pytest.raises(TargetExistsError):
        run(lab, chain)  # whose file b.txt is, nobody knows any more
    (lab.out / "b.txt").unlink()
    assert run(lab, chain) == ["b"]


def test_plugins_are_told_before_and_after(lab, chain):
    told = []
    end = events.subscribe(lambda event, **facts: told.append((event, facts)))
    try:
        run(lab, chain)
        assert run(lab, chain) == []
    finally:
        end()
    assert [e for e, _ in told] == ["before_operation", "after_operation"] * 4
    assert told[0][1]["options"]["text"] == "hello"
    assert told[1][1]["error"] is None
    assert told[1][1]["seconds"] >= 0


def test_an_output_directory_that_is_a_file(lab, chain):
    lab.out.write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        run(lab, chain)


def test_progress_is_told_by_step(lab, chain):
    lines: list[str] = []
    engine = Engine(chain, lab.registry, settings={}, out=lab.out)
    engine.run(narrate=lines.append)
    engine.run(narrate=lines.append)
    assert lines[0] == "[1/4] a: write (not yet run)"
    assert re.fullmatch(r"\[1/4\] a: done in \d+\.\d s", lines[1])
    assert lines[8:] == [f"[{i}/4] {name}: unchanged" for i, name in enumerate("abcd", start=1)]


def test_an_operation_that_takes_the_registry_gets_it(monkeypatch):
    from types import SimpleNamespace

    from apt.options import Options
    from apt.recipes import engine
    from apt.registry import Component, Registry

    def operation(options, registry=None):
        return registry

    monkeypatch.setattr(Component, "load", lambda self: operation)
    step = SimpleNamespace(name="s", operation="o")
    registry = Registry([])
    assert engine._call(step, Component("operation", "o", "x:y"), Options(), registry) is registry
