"""Drop-in plugins written on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest

#: The file that the documents of this project's predecessor publish as an example of a plugin, to the letter.
PUBLISHED = """\
from apt.plugins.base import Plugin

class MyPlugin(Plugin):
    name = "my-plugin"
    version = "1.0.0"
    author = "someone"
    description = "what it does"
    required_dependencies = ["torch"]
    optional_dependencies = ["transformers", "datasets"]

    def setup(self): ...
    def teardown(self): ...
    def register_commands(self, parser):
        parser.add_command("my-command", self.my_command)
    def my_command(self, args): ...
"""


@pytest.fixture
def published() -> str:
    return PUBLISHED


@pytest.fixture
def dropin(apt_home: Path) -> Callable[[str, str], Path]:
    """Write a file into the user's plugin directory."""

    def write(name: str, source: str) -> Path:
        path = apt_home / "plugins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        return path

    return write


@pytest.fixture
def plugin_source() -> Callable[..., str]:
    """Source of a small plugin with one command that says its name, and whatever is added."""

    def make(name: str, *, top: str = "", attributes: str = "", body: str = "", command: str = "") -> str:
        command = command or f"{name}-command"
        return (
            f"from apt.plugins.base import Diagnosis, Plugin\n{top}\n"
            f"class Made(Plugin):\n"
            f"    name = {name!r}\n    version = '1.2'\n    description = 'says hello'\n{attributes}\n"
            f"    def register_commands(self, registry):\n"
            f"        registry.add_command({command!r}, self.say, help='Say hello.')\n"
            f"    def say(self, args):\n        from apt.console import output\n"
            f"        output.emit_text(f'hello from {{self.name}} {{args}}')\n{body}\n"
        )

    return make
