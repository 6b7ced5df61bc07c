"""What is offered at the cursor, without a shell; the shells themselves are in ``test_completion_scripts.py``."""

import os
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt import store
from apt.console.completes import Completes
from apt.plugins import completion, completion_tree, host
from apt.plugins.completion_words import bash_line, bash_quoted, harmless, words_line
from apt.recipes import catalog
from apt.registry import load_target

BREAKS = " \t\n\"'><=;|&(:"


def ask(*words: str, at: int | None = None) -> completion.Answer:
    """Complete the last of some words, or the one at a place."""
    line = words_line(list(words), len(words) - 1 if at is None else at, raw=False)
    return completion.complete(line, completion_tree.section(host.load()))


def offered(*words: str, at: int | None = None) -> list[str]:
    return [word for word, _ in ask(*words, at=at).candidates]


def bash(before: str, after: str = "") -> list[str]:
    """Return the directives and the candidates that bash is given."""
    line = bash_line(BREAKS, f"apt_model {before}", after)
    assert line is not None
    answer = completion.complete(line, completion_tree.section(host.load()))
    return completion.render("bash", line, answer).splitlines()


def test_commands_are_those_that_can_be_used(dropin: Callable, plugin_source: Callable) -> None:
    dropin("good.py", plugin_source("good"))
    dropin("bad.py", plugin_source("bad", attributes="    api = 99"))
    assert {"info", "prune", "plugin", "completion", "good-command"} <= set(offered(""))
    assert "bad-command" not in offered("")
    host.set_enabled(["good", "model-pruning"], enabled=False)
    assert not {"good-command", "prune"} & set(offered(""))
    assert offered("prune", "--st") == []
    assert dict(ask("").candidates)["info"].startswith("Architecture")


def test_options_before_a_command_are_those_of_the_help(cli: Callable) -> None:
    listed = cli("--help").out.partition("\nOptions:\n")[2].partition("\n\n")[0]
    assert offered("--") == [line.split()[0] for line in listed.splitlines()]
    assert "prune" in offered("--safe-mode", "pr")


def test_subcommands() -> None:
    assert offered("cloud-storage", "") == ["backup", "restore", "list", "upload", "download"]
    assert "export" in offered("ollama", "ex")
    assert offered("no-such-command", "") == offered("plugin", "no-such", "") == []


def test_options_that_are_given_are_not_offered_again() -> None:
    assert {"--output", "-o", "--ratio", "--json", "--help"} <= set(offered("prune", "tiny", "-"))
    assert not {"--output", "-o", "--json"} & set(offered("prune", "tiny", "-o", "x", "--json", "-"))
    assert not {"--output", "-o"} & set(offered("prune", "--output=x", "--"))
    assert not {"--speed", "--no-speed"} & set(offered("compare", "--no-speed", "-"))
    assert "--set" in offered("run", "x", "--set", "a=b", "--")
    assert "--json" not in offered("info", "--", "--json", at=1)
    assert {"--version", "--help", "--install-completion"} <= set(offered("-"))


def test_an_option_s_value_is_no_argument() -> None:
    assert "tiny" in offered("prune", "--ratio", "0.3", "")
    assert "tiny" not in offered("prune", "tiny", "--ratio", "0.3", "")
    assert ask("prune", "tiny", "-o", "").paths == "directories"
    assert ask("ollama", "export", "tiny", "-qo", "").paths == "directories"
    assert "tiny" in offered("ollama", "export", "-ox", "")


def test_after_two_dashes_nothing_is_an_option() -> None:
    assert offered("info", "--", "--js") == offered("info", "")
    assert offered("info", "--", "tiny", "-") == []


def test_where_no_argument_is_left_options_are_offered() -> None:
    assert {"--teacher", "--student"} <= set(offered("distill", ""))
    assert "--json" in offered("info", "tiny", "")


def test_values_follow_an_equals_sign_too() -> None:
    answer = ask("ollama", "export", "tiny", "--type=q")
    assert ([word for word, _ in answer.candidates], answer.prefix) == (["q8_0", "f16", "bf16", "f32"], "--type=")
    assert offered("ollama", "export", "--type", "") == ["q8_0", "f16", "bf16", "f32"]
    assert offered("info", "--json=") == offered("info", "--no-such=") == []
    answer = ask("quickstart", "--text=")
    assert ([word for word, _ in answer.candidates], answer.paths) == (["embedded", "self"], "files")


def test_plugins_by_state(dropin: Callable, plugin_source: Callable) -> None:
    dropin("off.py", plugin_source("off"))
    host.set_enabled(["off"], enabled=False)
    assert offered("plugin", "enable", "") == ["off"]
    assert "off" not in offered("plugin", "disable", "")
    assert {"ollama-export", "model-pruning"} <= set(offered("plugin", "disable", "ollama-export", ""))
    assert dict(ask("plugin", "info", "").candidates)["off"] == "disabled: says hello"


def test_components_of_plugins_are_values(dropin: Callable, plugin_source: Callable) -> None:
    body = "    def register_components(self, r):\n        r.add_component('strategy', '新', 'os:getcwd')\n"
    bundled = offered("prune", "--strategy", "")
    assert {"structured", "magnitude", "reconstruct"} <= set(bundled)
    dropin("more.py", plugin_source("more", body=body))
    assert offered("prune", "--strategy", "") == [*bundled, "新"]


def test_a_foreign_command_is_not_imported_and_takes_paths(
    dropin: Callable, plugin_source: Callable, tmp_path: Path
) -> None:
    marker = tmp_path / "imported"
    dropin("theirs.py", plugin_source("theirs", top=f"open({str(marker)!r}, 'a').write('x')"))
    assert run("fish", "1", "theirs-command", "").stdout == "files\t\n"
    assert run("fish", "1", "theirs-command", "-").stdout == "none\t\n--help\tShow the options.\n"
    assert not marker.exists()


def test_options_of_a_foreign_command_come_from_its_manifest(
    dropin: Callable, plugin_source: Callable, apt_home: Path
) -> None:
    (apt_home / "plugins" / "theirs").mkdir(parents=True)
    dropin("theirs/__init__.py", plugin_source("theirs"))
    manifest = "[[plugin.commands]]\nname = 'theirs-command'\noptions = [{}]\n"
    dropin("theirs/plugin.toml", manifest.format("'--loud', '--name=', '--type=f16,q8_0', '$(x) y', 'bare', '--a=b c'"))
    assert offered("theirs-command", "-") == ["--loud", "--name", "--type", "--help"]
    assert offered("theirs-command", "--type", "") == ["f16", "q8_0"]
    assert offered("theirs-command", "--name", "") == []


def test_models(apt_home: Path, tmp_path: Path) -> None:
    models = apt_home / "models"
    for name in ("模型 📦", "two words", ".hidden", "-o", "bad\nname", "\x1b[31mred", "a\u202eb", "\udcff"):
        (models / name).mkdir(parents=True)
    (models / "one.gguf").write_text("")
    (models / "notes.txt").write_text("")
    (tmp_path / "hf-home/hub/models--Qwen--Qwen2.5--x").mkdir(parents=True)
    (tmp_path / "hf-home/hub/datasets--a--b").mkdir(parents=True)
    found = ["one.gguf", "two words", "模型 📦"]
    assert offered("info", "") == ["tiny", *found, "hf:Qwen/Qwen2.5--x"]
    assert offered("info", "--", "") == ["tiny", "-o", *found, "hf:Qwen/Qwen2.5--x"]
    assert ask("info", "").paths == "files"
    assert {"tiny", *found} == {"tiny", *(p.name for p in store.list_models() if harmless(p.name))} - {"-o"}


@pytest.mark.parametrize("variables", [{}, {"HF_HOME": "~/h"}, {"HF_HUB_CACHE": "~/c"}, {"XDG_CACHE_HOME": "/x"}])
def test_hub_cache_is_the_store_s(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert completion.hub_cache() == str(store.hub_cache())


def test_bash_is_given_what_replaces_the_end_of_the_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf-home/hub/models--Qwen--Q").mkdir(parents=True)
    place = tmp_path / "place"
    (place / "tin").mkdir(parents=True)
    (place / "tiny.gguf").write_text("")
    (place / "tiny.txt").write_text("")
    monkeypatch.chdir(place)
    assert bash("info hf:Q") == ["none space", "Qwen/Q"]
    assert bash("info h") == ["none space", "hf:Qwen/Q"]
    assert bash("info hf\\:Q") == ["none space", "hf:Qwen/Q"]
    assert bash("info 'hf:Q") == ["none space", "hf:Qwen/Q"]
    assert bash("info ti") == ["none space", "tiny", "tin/", "tiny.gguf"]
    assert bash("quickstart --model=ti") == ["none space", "tiny", "tin/", "tiny.gguf"]
    assert bash("info ./ti") == ["files space"]
    assert bash("prune tiny --output=") == ["directories space"]
    assert bash("compare --dtype=s") == ["none space", "stored"]
    assert bash("info --js", " --json") == ["none space"]
    assert bash("compare --sp", "eed --json") == ["none space", "--speed"]


def test_bash_words() -> None:
    def split(before: str, after: str = "") -> tuple[list[str], str, list[str]]:
        line = bash_line(BREAKS, before, after)
        assert line is not None
        return line.before, line.word, line.after

    assert split("apt_model info ") == (["info"], "", [])
    assert split("X=1 ./bin/apt-model a 'b c'\"d\"\\ e f") == (["a", "b cd e"], "f", [])
    assert split("alias a '' \"\" x") == (["a", "", ""], "x", [])
    assert split('apt_model "a\\$\\x', "yz' w' 'v'") == ([], "a$\\x", ["v"])
    assert split("apt_model a 2>/dev/null b <in c") == (["a", "b"], "c", [])
    assert split("apt_model --x=a:b", " c >d") == ([], "--x=a:b", ["c"])
    assert bash_line(BREAKS, "apt_model info tiny > o", "") is None
    for breaks, kept in ((BREAKS, "--m=hf:"), (" =", "--m="), (" ", "")):
        line = bash_line(breaks, "apt_model --m=hf:Q", "")
        assert line is not None and line.kept == len(kept)


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1), st.sampled_from(["", "'", '"'])
)
def test_a_quoted_word_is_read_back_as_it_was(word: str, quote: str) -> None:
    quoted = bash_quoted(word, quote)
    if quoted is None:
        assert quote == '"' and "!" in word
        return
    line = bash_line("", f"apt_model {quote}{quoted}{quote} ", "")
    assert line is not None and line.before == [word]


def test_bash_reads_every_sign_as_it_was(tmp_path: Path) -> None:
    signs = "".join(map(chr, range(32, 127))) + "模型 📦é"
    words = [*signs, f"a{signs}", "~", "~root", "{a,b}", "#x", "$(touch pwned)", "`touch pwned`", "a;touch pwned"]
    text = " ".join(str(bash_quoted(word, "")) for word in words)
    text += " " + " ".join(f"'{bash_quoted(word, chr(39))}'" for word in words)
    text += " " + " ".join(f'"{q}"' for word in words if (q := bash_quoted(word, '"')) is not None)
    ran = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], cwd=tmp_path, capture_output=True, check=True)
    assert ran.stdout.decode().splitlines() == [*words, *words, *(w for w in words if "!" not in w)]
    assert not list(tmp_path.iterdir())


def test_harmless_words() -> None:
    assert all(map(harmless, ["a", "模型", "全角\u3000空格", "👩\u200d💻", "$(x)", "é"]))
    assert not any(map(harmless, ["", "a\nb", "a\tb", "\x1b", "\x9b", "a\u202e", "\udc80", "\u2028"]))


def test_descriptions_are_one_line_that_a_terminal_can_show(dropin: Callable, plugin_source: Callable) -> None:
    text = "a\tb \x1b[31m" + "长" * 200
    dropin("long.py", plugin_source("long").replace("'Say hello.'", repr(text)))
    (found,) = [text for name, text in ask("").candidates if name == "long-command"]
    assert found.startswith("a b [31m长") and len(found) == 70


def test_the_tree_knows_every_shipped_command() -> None:
    text = Path(completion.TREE).read_text(encoding="utf-8")
    data = host.load()
    assert {line[1:].split()[0] for line in text.splitlines() if line.startswith("@")} == {
        c.name for c in data.commands
    }


#: Options whose values an operation checks itself: the command, the option, what checks it.
CHECKED = [
    ("ollama export", "--type", "apt.plugins.builtin.ollama.options:ExportOptions", "type"),
    ("ollama verify", "--llama-cpp", "apt.plugins.builtin.ollama.options:VerifyOptions", "llama_cpp"),
    ("prune", "--effort", "apt.plugins.optional.pruning.options:PruneOptions", "effort"),
    ("distill", "--optimizer", "apt.plugins.optional.distillation.options:DistillOptions", "optimizer"),
    ("distill", "--divergence", "apt.plugins.optional.distillation.options:DistillOptions", "divergence"),
    ("distill", "--precision", "apt.plugins.optional.distillation.options:DistillOptions", "precision"),
    ("compare", "--dtype", "apt.evaluation.operations:CompareOptions", "dtype"),
]


@pytest.mark.parametrize(("command", "option", "schema", "field"), CHECKED)
def test_choices_are_those_that_the_operation_takes(command: str, option: str, schema: str, field: str) -> None:
    choices = typing.get_args(load_target(schema).model_fields[field].annotation)
    assert sorted(offered(*command.split(), option, "")) == sorted(choices)


def test_other_choices_are_those_that_are_there() -> None:
    from apt.plugins.builtin.cloud_storage.platforms import PLATFORMS
    from apt.plugins.completion_scripts import SHELLS

    assert offered("cloud-storage", "upload", "--platform", "") == list(PLATFORMS)
    assert offered("run", "") == list(catalog.shipped())
    assert offered("completion", "") == offered("--show-completion", "") == list(SHELLS)


@pytest.mark.parametrize("mark", ["", "colour", "choices", "choices:a b", "component:", "choices:a\tb"])
def test_marks_that_are_none_are_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="nothing can be completed"):
        Completes(mark)


def test_a_signature_says_its_choices_by_its_types() -> None:
    import enum

    import typer

    class Size(enum.Enum):
        SMALL = "small"
        LARGE = "large"

    def made(
        size: Size,
        kind: Literal["a", "b"] = "a",
        out: Path | None = None,
        many: list[str] | None = None,
        flag: bool = False,
    ) -> None: ...

    application = typer.Typer(add_completion=False)
    application.command()(made)
    text = completion_tree.tree([("made", typer.main.get_command(application))])
    assert text.splitlines()[1:] == [
        "@made",
        "a\tchoices:small,large\t",
        "o\t--kind\tchoices:a,b\t",
        "o\t--out\tfile\t",
        "O\t--many\t-\t",
        "o\t--flag --no-flag\t\t",
        "o\t--help\t\tShow the options.",
    ]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "apt_model", "__complete", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        check=False,
    )


def test_a_stale_index_is_built_anew_in_silence(dropin: Callable, plugin_source: Callable) -> None:
    before = run("fish", "0", "la")
    dropin("late.py", plugin_source("late"))
    after, uncached = run("fish", "0", "la"), run("fish", "0", "la", APT_NO_CACHE="1")
    assert "late-command\tSay hello." not in before.stdout
    assert "late-command\tSay hello." in after.stdout
    assert uncached.stdout == after.stdout
    assert (before.stderr, after.stderr, after.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    "arguments", [[], ["bash"], ["tcsh", "0", ""], ["zsh", "x", ""], ["zsh", "1", ""], ["fish", "0"]]
)
def test_a_call_of_another_form_is_answered_by_the_exit_code(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "")
