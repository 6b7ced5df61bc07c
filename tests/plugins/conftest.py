"""Drop-in plugins written on the spot, and environments of their own for plugins that are installed."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees the packages of this one, and an empty home."""

    home: Path
    binaries: Path
    variables: Mapping[str, str]

    def run(self, *words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in its home."""
        own = self.binaries / words[0]
        command = [own if own.exists() else words[0], *words[1:]]
        return subprocess.run(
            command, cwd=cwd or self.home, env=self.variables, capture_output=True, text=True, check=False
        )


@pytest.fixture
def fresh(tmp_path: Path) -> Environment:
    """An environment in which packages can be installed, offline and without touching ours."""
    root = tmp_path / "fresh"
    venv.EnvBuilder(symlinks=True).create(root)
    home, binaries = root / "home", root / "bin"
    home.mkdir()
    (site,) = root.glob("lib/python*/site-packages")
    packages = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site / "parent.pth").write_text("\n".join([str(ROOT), *packages, ""]), encoding="utf-8")
    script = binaries / "apt_model"
    start = "import sys\nfrom apt_model.__main__ import main\nsys.exit(main())\n"
    script.write_text(f"#!{binaries / 'python'}\n{start}", encoding="utf-8")
    script.chmod(0o755)
    variables = {
        "HOME": str(home),
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip takes the value for that of build isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return Environment(home, binaries, variables)


@pytest.fixture(scope="session")
def type_check(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Run mypy on files beside the package, as strict as ``mypy --strict`` for them.

    The cache of ``make types`` is copied where there is one: without it, mypy reads all that the package imports.
    """
    directory = tmp_path_factory.mktemp("mypy")
    cache = directory / "cache"
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", cache, ignore_dangling_symlinks=True)
    config = directory / "mypy.toml"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def run(*files: Path, modules: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        override = f"[[tool.mypy.overrides]]\nmodule = {list(modules)}\nwarn_return_any = true\n" if modules else ""
        config.write_text(f"{text}\n{override}", encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", cache, *files]
        variables = {**os.environ, "MYPYPATH": "."}
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)

    yield run
    shutil.rmtree(cache, ignore_errors=True)  # a hundred MiB, which pytest would keep
