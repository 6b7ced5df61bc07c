"""Every typo is refused with file and line before anything runs."""

import textwrap

import pytest

from apt.console.errors import ExitCode, UsageError
from apt.document import DocumentError
from apt.recipes.engine import Engine

SOUND = """\
title: A sound recipe
inputs:
  text: hello
  times: 2
  scale: 1e-4
steps:
  - name: first
    operation: write
    with:
      output: ${out}/first.txt
      text: ${inputs.text} world
      times: ${inputs.times}
  - name: second
    operation: join
    when: ${inputs.text} == hello
    with:
      output: ${out}/second.txt
      files: ["${steps.first.path}"]
      scale: ${inputs.scale}
      shape: {width: 3, height: 2}
      extra: {size: "${steps.first.size_bytes}", third: "${steps.first.lines.1}"}
    expect:
      - score <= 1
"""

# what is replaced, by what, in which line the fault stands, what the message says, what the hint says
TYPOS = {
    "recipe key": ("title:", "titel:", 1, "unknown key 'titel'", "did you mean 'title'?"),
    "steps key": ("steps:", "step:", 6, "unknown key 'step'", ""),
    "step key": ("    when:", "    wen:", 15, "unknown key 'wen' in step 'second'", "did you mean 'when'?"),
    "with": ("write\n    with:", "write\n    whit:", 9, "unknown key 'whit'", "did you mean 'with'?"),
    "operation": ("operation: join", "operation: jion", 14, "unknown operation 'jion'", "did you mean 'join'?"),
    "option": ("times: ${", "tims: ${", 12, "unknown option 'tims' of operation 'write'", "did you mean 'times'?"),
    "nested option": ("width: 3", "widht: 3", 20, "unknown option 'shape.widht'", "did you mean 'width'?"),
    "missing option": ("      output: ${out}/second.txt\n", "", 16, "'output' of operation 'join' is missing", ""),
    "word for a number": ("height: 2", "height: tall", 20, "'tall' should be a valid number", ""),
    "quoted number": ("width: 3", "width: '3'", 20, "'3' should be a valid integer", ""),
    "boolean for a number": ("width: 3", "width: true", 20, "True should be a valid integer", ""),
    "fraction for an integer": ("width: 3", "width: 1.5", 20, "1.5 should be a valid integer", ""),
    "out of range": ("times: ${inputs.times}", "times: 0", 12, "0 should be greater than or equal to 1", ""),
    "input of the wrong type": ("times: 2", "times: two", 12, "'two' should be a valid integer", ""),
    "text for a list": ('files: ["${steps.first.path}"]', "files: a.txt", 18, "should be a valid array", ""),
    "choice": ("shape:", "mode: lowd\n      shape:", 20, "'lowd' should be 'plain' or 'loud'", ""),
    "root of a reference": ("${inputs.scale}", "${input.scale}", 19, "unknown reference", "did you mean 'inputs'?"),
    "input": ("${inputs.times}", "${inputs.time}", 12, "unknown input 'time'", "did you mean 'times'?"),
    "step": ("${steps.first.path}", "${steps.frist.path}", 18, "unknown step 'frist'", "did you mean 'first'?"),
    "field": ("${steps.first.path}", "${steps.first.paht}", 18, "Written has no field 'paht'", "did you mean 'path'?"),
    "field in a text": ("${steps.first.size_bytes}", "n ${steps.first.size_byte}", 21, "no field", "'size_bytes'"),
    "field of a field": ("first.size_bytes", "first.size_bytes.bits", 21, "type int has no field 'bits'", ""),
    "index": ("lines.1", "lines.first", 21, "'first' is no index of a list", ""),
    "itself": ("${steps.first.path}", "${steps.second.path}", 18, "step 'second' refers to itself", ""),
    "later step": ("text: ${inputs.text} world", "text: '${steps.second.path}'", 11, "comes later than 'first'", ""),
    "open reference": ("${inputs.text} world", "${inputs.text world", 11, "is not closed", ""),
    "empty reference": ("${inputs.text} world", "${} world", 11, "malformed reference", ""),
    "part of out": ("${out}/first.txt", "${out.first}", 10, "malformed reference", "${out}/NAME"),
    "condition": ("== hello", "= hello", 15, "is no condition", ""),
    "condition on a step": ("when: ${inputs.text}", "when: ${steps.first.path}", 15, "may read inputs only", ""),
    "input of a condition": ("when: ${inputs.text}", "when: ${inputs.txt}", 15, "has no 'txt'", "'text'"),
    "expectation": ("score <= 1", "scor <= 1", 23, "has no field 'scor'", "did you mean 'score'?"),
    "expectation's form": ("- score <= 1", "- score", 23, "is no condition", ""),
    "key twice": ("title: A sound recipe", "title: a\ntitle: b", 2, "the key 'title' is written twice", ""),
    "option twice": ("      times: $", "      text: x\n      times: $", 12, "the key 'text' is written twice", ""),
    "name twice": ("name: second", "name: first", 13, "two steps are called 'first'", ""),
    "name with a blank": ("name: second", "name: the second", 13, "cannot be the name of a step", ""),
    "name missing": ("- name: second\n    operation", "- operation", 13, "a step needs a name", ""),
    "indentation": ("    operation: join", "   operation: join", 14, "not valid YAML", ""),
    "tabulator": ("    operation: join", "\toperation: join", 14, "not valid YAML", ""),
    "unclosed quote": ("text: ${inputs.text} world", 'text: "${inputs.text} world', 18, "not valid YAML", ""),
    "tag": ("text: hello", "text: !!python/name:os.system hello", 3, "is not allowed here", ""),
    "alias that bites its tail": ("extra: {", "files2: &a [*a]\n      extra: {", 21, "endless", ""),
    "list for steps": ("with:\n      output: ${out}/first.txt", "with:\n      - output: x", 11, "not valid YAML", ""),
    "second document": ("steps:", "---\nsteps:", 6, "not valid YAML", ""),
    "default that is a list": ("text: hello", "text: [a]", 3, "must be text, a number, true or false", ""),
    "input without value": ("text: hello", "text:", 3, "input 'text' has no value", "--set text=…"),
    "name of an input": ("  scale: 1e-4", "  Scale: 1e-4", 5, "cannot be the name of an input", ""),
}  # fmt: skip


def test_the_sound_recipe_is_sound(lab):
    Engine(lab.recipe(SOUND), lab.registry, settings={}, out=lab.out)


@pytest.mark.parametrize("name", TYPOS)
def test_typo(lab, name):
    old, new, line, message, hint = TYPOS[name]
    assert SOUND.count(old) >= 1
    path = lab.recipe(SOUND.replace(old, new, 1))
    with pytest.raises(DocumentError) as caught:
        Engine(path, lab.registry, settings={}, out=lab.out).run()
    problems = [p for p in caught.value.problems if message in p.message]
    assert problems, caught.value.problems
    assert problems[0].line == line, caught.value.problems
    assert problems[0].file == str(path)
    assert hint in problems[0].hint
    assert str(caught.value).startswith(f"{path}:{caught.value.problems[0].line}: ")
    assert caught.value.exit_code == ExitCode.USAGE
    assert not lab.out.exists()
    assert lab.calls() == []


def test_every_fault_is_told_at_once_in_the_order_of_the_lines(lab):
    path = lab.recipe(SOUND.replace("titel", "x").replace("times: $", "tims: $").replace("width", "wdth"))
    with pytest.raises(DocumentError) as caught:
        Engine(path, lab.registry, settings={}, out=lab.out)
    assert [p.line for p in caught.value.problems] == [12, 20]
    assert "1 more: line 20: unknown option 'shape.wdth'" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "just words", "- a\n- b\n", "steps: []", "steps: {a: b}", "steps: [word]"]
)
def test_no_recipe_at_all(lab, text):
    path = lab.recipe(text)
    with pytest.raises(DocumentError, match=rf"{path.name}:\d+: "):
        Engine(path, lab.registry, settings={}, out=lab.out)


def test_bytes_that_are_no_text(lab):
    path = lab.root / "recipe.yaml"
    path.write_bytes(b"title: \xff\xfe")
    with pytest.raises(Exception, match="not UTF-8 text"):
        Engine(path, lab.registry, settings={}, out=lab.out)


def test_control_characters(lab):
    path = lab.recipe("title: a\nsteps: \x07\n")
    with pytest.raises(DocumentError, match=r"recipe.yaml:2: not valid YAML"):
        Engine(path, lab.registry, settings={}, out=lab.out)


def test_nesting_without_end(lab):
    path = lab.recipe("[" * 5000)
    with pytest.raises(DocumentError):
        Engine(path, lab.registry, settings={}, out=lab.out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"txt": "a"}, "has no input 'txt'.*did you mean 'text'"),
        ({"times": "many"}, "input 'times' of recipe must be a whole number, not 'many'"),
        ({"times": "1.5"}, "must be a whole number"),
        ({"scale": "true"}, "must be a number"),
    ],
)
def test_settings_that_do_not_fit(lab, settings, message):
    with pytest.raises(UsageError, match=message):
        Engine(lab.recipe(SOUND), lab.registry, settings=settings, out=lab.out)


def test_words_stay_words_and_numbers_are_numbers(lab):
    text = """\
    inputs: {a: no, b: on, c: 1e-4, d: 010, e: 2026-01-01, f: 0.5, g: true}
    steps:
      - name: s
        operation: write
        with: {output: "${out}/x"}
    """
    engine = Engine(lab.recipe(text), lab.registry, settings={}, out=lab.out)
    expected = {"a": "no", "b": "on", "c": 1e-4, "d": 10, "e": "2026-01-01", "f": 0.5, "g": True}
    assert engine._recipe.inputs == expected


def test_an_operation_that_cannot_be_imported_is_told_with_its_line(lab):
    lab.source.write_text("import a_library_that_nobody_has\n")
    with pytest.raises(DocumentError, match=r"recipe.yaml:8: operation 'write' cannot be loaded: .*a_library_that"):
        Engine(lab.recipe(SOUND), lab.registry, settings={}, out=lab.out)


def test_steps_of_one_name_when_only_one_takes_part(lab):
    text = """\
    inputs: {mode: a}
    steps:
      - {name: s, operation: write, when: "${inputs.mode} == a", with: {output: "${out}/a"}}
      - {name: s, operation: write, when: "${inputs.mode} == b", with: {output: "${out}/b"}}
      - {name: t, operation: join, with: {output: "${out}/t", files: ["${steps.s.path}"]}}
    """
    path = lab.recipe(text)
    assert Engine(path, lab.registry, settings={"mode": "b"}, out=lab.out).run().steps[0].result["path"].endswith("/b")
    with pytest.raises(DocumentError, match="step 's' does not run with these inputs"):
        Engine(path, lab.registry, settings={"mode": "c"}, out=lab.out)


def test_a_step_that_does_not_take_part_is_checked_too(lab):
    text = textwrap.dedent(SOUND).replace("== hello", "== other").replace("width", "wdth")
    with pytest.raises(DocumentError, match=r"recipe.yaml:20"):
        Engine(lab.recipe(text), lab.registry, settings={}, out=lab.out)
