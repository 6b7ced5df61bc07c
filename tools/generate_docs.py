"""Write the reference pages that come from code: ``docs/cli.md`` and ``docs/hooks.md``.

Run by ``make docs``; with ``--check`` nothing is written and the exit code says whether the pages are in step.
"""

import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

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


def cli_page() -> str:
    """Return the reference of all commands with their help as the terminal shows it."""
    from apt.cli import lazy
    from apt.console.errors import ExitCode
    from apt.plugins import build, helptext, host

    data = build.build()
    own = {p.name for p in data.plugins if p.source.startswith("built-in")} | {""}
    commands = [c for c in data.commands if c.plugin in own]
    parts = [
        "# Command line\n\nGenerated from the code by `make docs`.\n",
        "Data goes to stdout, talk to stderr; `--json` makes the data one JSON document. Nothing is animated or\n"
        "coloured off a terminal, nor where `NO_COLOR` is set. `APT_HOME` is the directory of models and plugins\n"
        "(default `~/.apt_model`), `APT_DEBUG=1` shows the traceback of any error, `APT_NO_CACHE=1` leaves the\n"
        "index of plugins uncached. `APT_LANG` (`en`, `zh-CN`) is the language of messages and help;\n"
        "without it the locale decides. JSON is the same in every language.\n",
        "## Exit codes\n",
        "| code | meaning |\n|---|---|\n"
        + "".join(f"| {code.value} | {_EXIT_CODES[code.name]} |\n" for code in ExitCode)
        + "| 141 | the reader of the output has gone |\n",
        f"## apt_model\n\n```text\n{helptext.render(commands, [p for p in data.plugins if p.name in own])}\n```\n",
    ]
    host.refresh()
    for record in commands:
        for words, text in _helps(lazy.load_command(record), f"apt_model {record.name}"):
            parts.append(f"## {words}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _helps(command: Any, words: str) -> Iterator[tuple[str, str]]:
    context = command.context_class(command, info_name=words, terminal_width=_WIDTH)
    yield words, "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())
    for name, child in getattr(command, "commands", {}).items():
        yield from _helps(child, f"{words} {name}")


def hooks_page() -> str:
    """Return the reference of all hooks: signature and docstring."""
    from apt.plugins import hooks, hookspecs

    parts = [f"# Hooks\n\nGenerated from `apt/plugins/hookspecs.py` by `make docs`.\n\n{_markdown(hookspecs)}\n"]
    for name in hooks.names():
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
        return {"docs/cli.md": cli_page(), "docs/hooks.md": hooks_page()}


def main() -> int:
    """Write the pages, or check them."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in generated().items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    verb = "out of step (make docs)" if check else "written"
    print(f"{verb}: {', '.join(stale)}" if stale else "in step")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
