"""docs/plugins.md followed to the letter, in a clean home and an environment of its own."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "plugins.md"
LANGUAGES = ("sh", "python", "toml", "text")


def blocks() -> list[tuple[int, str, str]]:
    """Return line, info string and text of every fenced block; one that is indented as code is a fault."""
    text = GUIDE.read_text(encoding="utf-8")
    found = [
        (text.count("\n", 0, m.start()) + 1, m[1], m[2])
        for m in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^ {4,}\S", prose, re.MULTILINE), "code outside of a fenced block is not run"
    return found


def test_guide_does_what_it_says(fresh: Any) -> None:
    printed, ran = "", 0
    for line, language, text in blocks():
        where = f"docs/plugins.md:{line}"
        assert language in LANGUAGES, f"{where}: nobody runs {language!r}"
        ran += 1
        if language == "sh":
            printed = shell(fresh, text, where)
        elif language == "text":
            expect(text, printed, where)
        else:
            place(fresh.home, language, text, where)
    assert ran > 15


def shell(fresh: Any, text: str, where: str) -> str:
    """Run commands where the last ones ended, and return what they print on stdout."""
    here = fresh.home / ".here"
    start = f'cd "$(cat {here} 2>/dev/null || echo ~)"\n'
    done = fresh.run("bash", "-euc", f"{start}{text}\npwd > {here}")
    assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def expect(text: str, printed: str, where: str) -> None:
    """Hold that a text was printed, to the letter but for blanks between words; ``…`` stands for anything."""
    words = [".*?" if word == "…" else ".*?".join(map(re.escape, word.split("…"))) for word in text.split()]
    shown = " ".join(printed.split())
    assert re.fullmatch(" ".join(words).replace(" .*? ", " .*?"), shown), f"{where}: {shown}"


def place(home: Path, language: str, text: str, where: str) -> None:
    """Write a file that opens with its path; of one that is there already, hold that it says so."""
    first = text.partition("\n")[0]
    assert first.startswith("# ~/"), f"{where}: which file is it?"
    file = home / first.removeprefix("# ~/")
    if language == "toml":
        assert within(tomllib.loads(text), tomllib.loads(file.read_text(encoding="utf-8"))), where
    else:
        assert not file.exists(), where
        file.write_text(text, encoding="utf-8")


def within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(k in whole and within(v, whole[k]) for k, v in part.items())
    return bool(part == whole)


def test_every_attribute_status_and_command_is_told() -> None:
    from typing import get_args

    from apt.cli.plugin import app
    from apt.plugins.base import Plugin
    from apt.plugins.records import Status

    text = GUIDE.read_text(encoding="utf-8")
    attributes = list(vars(Plugin)["__annotations__"])
    commands = [c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands]
    for name in (*attributes, *get_args(Status)):
        assert f"`{name}`" in text, name
    for name in commands:
        assert re.search(rf"plugin {name}\b", text), name
