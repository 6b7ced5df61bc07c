"""Write what comes from code: pages of commands, hooks and configuration, JSON Schemas, and what completion reads.

Run by ``make docs``; with ``--check`` nothing is written and the exit code says whether the pages are in step.
"""

import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import configuration_page
import result_schemas

if TYPE_CHECKING:
    from apt.plugins.records import CommandRecord, PluginRecord

ROOT: Final = Path(__file__).resolve().parent.parent
_WIDTH: Final = 100

_EXIT_CODES: Final = {
    "OK": "done; an artefact or a measurement was named",
    "FAILED": "failed for a reason that has no code of its own; the line on stderr says which",
    "USAGE": "the call, a recipe or a config is wrong, or the plugin is disabled",
    "NOT_FOUND": "no such model, file, component, plugin or command",
    "BAD_INPUT": "an input is corrupted, contradictory or unsafe",
    "UNSUPPORTED": "the input is sound, but the operation does not cover it",
    "MISSING_DEPENDENCY": "a library or plugin that is needed is not installed",
    "TARGET_EXISTS": "the output exists and `--overwrite` was not given",
    "CANNOT_WRITE": "the output cannot be written",
    "NETWORK": "a server could not be reached or refused",
    "CHECK_FAILED": "a verification ran and was not passed",
    "INTERRUPTED": "interrupted from the keyboard",
}


def own_commands() -> "tuple[list[CommandRecord], list[PluginRecord]]":
    """Return the commands and plugins of this package; what the user has installed beside it is left out."""
    from apt.plugins import build, host

    data = build.build()
    own = {p.name for p in data.plugins if p.source.startswith("built-in")} | {""}
    host.refresh()
    if unready := [f"{p.name} {p.reason}" for p in data.plugins if p.name in own and p.status != "ready"]:
        raise SystemExit(f"the pages need every plugin of this package: {'; '.join(unready)}")
    return [c for c in data.commands if c.plugin in own], [p for p in data.plugins if p.name in own]


def cli_page(records: "list[CommandRecord]", plugins: "list[PluginRecord]", commands: dict[str, Any]) -> str:
    """Return the reference of all commands with their help as the terminal shows it."""
    from apt.console.errors import ExitCode
    from apt.plugins import helptext

    parts = [
        "# Command line\n\nGenerated from the code by `make docs`.\n",
        "Data goes to stdout, talk to stderr; `--json` makes the data one JSON document, whose JSON Schema is linked\n"
        "below each command; an error is then [an object](schemas/error.json) too. Nothing is animated or coloured\n"
        "off a terminal, nor where `NO_COLOR` is set. The environment variables are in\n"
        "[configuration.md](configuration.md); `APT_LANG` (`en`, `zh-CN`) is the language of messages and help,\n"
        "without it the locale decides. JSON is the same in every language.\n",
        "## Exit codes\n",
        "| code | meaning |\n|---|---|\n"
        + "".join(f"| {code.value} | {_EXIT_CODES[code.name]} |\n" for code in ExitCode)
        + "| 141 | the reader of the output has gone |\n",
        f"## apt_model\n\n```text\n{helptext.render(records, plugins)}\n```\n",
    ]
    for name, command in commands.items():
        for words, text, is_leaf in _helps(command, f"apt_model {name}"):
            schema = result_schemas.file_name(words.split()[1:])
            link = f"JSON: [{schema}]({schema})\n" if is_leaf else ""
            parts.append(f"## {words}\n\n```text\n{text}\n```\n" + (f"\n{link}" if link else ""))
    return "\n".join(parts)


def _helps(command: Any, words: str) -> Iterator[tuple[str, str, bool]]:
    context = command.context_class(command, info_name=words, terminal_width=_WIDTH)
    children = getattr(command, "commands", None)
    yield words, "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines()), children is None
    for name, child in (children or {}).items():
        yield from _helps(child, f"{words} {name}")


def hooks_page() -> str:
    """Return the reference of all hooks: signature and docstring."""
    from apt.plugins import hookspecs
    from apt.plugins.core import HOOKS

    parts = [f"# Hooks\n\nGenerated from `apt/plugins/hookspecs.py` by `make docs`.\n\n{_markdown(hookspecs)}\n"]
    for name in HOOKS:
        function = getattr(hookspecs.HookSpecs, name)
        source = inspect.getsource(function)
        signature = source[source.index("def ") : source.index('"""')].split("#")[0].rstrip()
        signature = " ".join(signature.split()).replace("( ", "(").replace(", )", ")").replace(" )", ")")
        parts.append(f"## {name}\n\n```python\n{signature} ...\n```\n\n{_markdown(function)}\n")
    return "\n".join(parts)


def _markdown(documented: object) -> str:
    """Return a docstring in Markdown."""
    text = (inspect.getdoc(documented) or "").replace("``", "`")
    text = re.sub(r":(?:data|class|func|meth|mod):`([^`]*)`", r"`\1`", text)
    return re.sub(r"^:param (\w+):", r"- `\1`:", text, flags=re.MULTILINE)


def generated() -> dict[str, str]:
    """Return the pages by path; what the user has installed beside this package is left out of sight."""
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(APT_HOME=home, APT_NO_CACHE="1", APT_LANG="en")
        from apt.cli import lazy
        from apt.plugins import completion_tree

        records, plugins = own_commands()
        commands = {record.name: lazy.load_command(record) for record in records}
        leaves = {words: leaf for name, c in commands.items() for words, leaf in result_schemas.leaves(c, (name,))}
        pages = {
            "cli.md": cli_page(records, plugins, commands),
            "hooks.md": hooks_page(),
            "configuration.md": configuration_page.page({p.name for p in plugins}),
            **result_schemas.pages(leaves),
        }
        tree = completion_tree.tree(commands.items())
    return {**{f"docs/{name}": text for name, text in pages.items()}, "apt/plugins/completion_tree.txt": tree}


def main() -> int:
    """Write the pages, or check them."""
    check = "--check" in sys.argv[1:]
    stale = []
    pages = generated()
    for name, text in pages.items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in sorted((ROOT / "docs" / "schemas").glob("*.json")):  # of commands that are no more
        if (name := path.relative_to(ROOT).as_posix()) not in pages:
            stale.append(name)
            if not check:
                path.unlink()
    verb = "out of step (make docs)" if check else "written"
    print(f"{verb}: {', '.join(stale)}" if stale else "in step")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
