"""Drop-in plugins and wheels written on the spot, and environments of their own for plugins that are installed."""

import base64
import csv
import hashlib
import importlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

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


def source_of_plugin(name: str, *, top: str = "", attributes: str = "", body: str = "", command: str = "") -> str:
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


@pytest.fixture
def plugin_source() -> Callable[..., str]:
    """Source of a small plugin with one command that says its name, and whatever is added."""
    return source_of_plugin


def write_wheel(
    name: str,
    version: str = "1.0",
    *,
    directory: Path,
    plugin: str | None = "",
    requires: tuple[str, ...] = (),
    files: dict[str, str | bytes] | None = None,
    source: str = "",
) -> Path:
    module = name.replace("-", "_")
    plugin = name if plugin == "" else plugin
    information = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: says hello\nAuthor: somebody\n"
    held: dict[str, str | bytes] = {
        f"{module}/__init__.py": source or (source_of_plugin(plugin) if plugin else ""),
        f"{information}/METADATA": metadata + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if plugin:
        held[f"{information}/entry_points.txt"] = f"[apt_model.plugins]\n{plugin} = {module}:Made\n"
    held |= files or {}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        rows = io.StringIO()
        for member, content in held.items():
            data = content.encode() if isinstance(content, str) else content
            wheel.writestr(member, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            csv.writer(rows).writerow([member, f"sha256={digest}", len(data)])
        wheel.writestr(f"{information}/RECORD", rows.getvalue() + f"{information}/RECORD,,\n")
    return path


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., Path]:
    """Write a wheel that brings a plugin, with a module, a RECORD and whatever files are added."""

    def make(name: str, version: str = "1.0", *, directory: Path | None = None, **options: Any) -> Path:
        return write_wheel(name, version, directory=directory or tmp_path / "made-wheels", **options)

    return make


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the search path, for installing without pip."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.setattr(sys, "path", [sys.path[0], str(path), *sys.path[1:]])
    return path


@pytest.fixture
def put(site: Path) -> Callable[[Path], Path]:
    """Unpack a wheel into the directory on the search path, as an installer does."""

    def unpack(wheel: Path) -> Path:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        importlib.invalidate_caches()
        return site

    return unpack


@pytest.fixture
def simple_index() -> Iterator[Any]:
    """A package index on loopback; see ``tests/servers/simple_index.py``."""
    path = Path(__file__).parents[1] / "servers" / "simple_index.py"
    spec = importlib.util.spec_from_file_location("tests_servers_simple_index", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.SimpleIndex().running() as server:
        yield server


class Isolated:
    """A virtual environment of its own, in which this source tree and everything it needs are found."""

    def __init__(self, directory: Path, *, index: str = "") -> None:
        self.directory = directory
        command = [sys.executable, "-m", "venv", "--without-pip", str(directory)]
        subprocess.run(command, check=True, capture_output=True)
        self.python = directory / "bin" / "python"
        (self.site,) = (directory / "lib").glob("python*/site-packages")
        (self.site / "tests.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
        self.home = directory / "home"
        self.command: list[str] = []
        self.variables = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))} | {
            "APT_HOME": str(self.home),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_CACHE_DIR": str(directory / "pip-cache"),
            **({"PIP_INDEX_URL": f"{index}/simple/"} if index else {"PIP_NO_INDEX": "1"}),
        }

    def run(self, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [*self.command, str(self.python), "-m", "apt_model", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.directory, env=self.variables | variables, check=False
        )

    def json(self, *words: str | Path, code: int = 0) -> Any:
        ran = self.run(*words, "--json")
        assert ran.returncode == code, ran.stderr + ran.stdout
        return json.loads(ran.stdout)

    def plugins(self) -> dict[str, dict[str, Any]]:
        """The foreign plugins that are installed, by name."""
        listed = self.json("plugin", "list")["plugins"]
        return {p["name"]: p for p in listed if not p["source"].startswith("built-in")}

    def drop(self, name: str, source: str | bytes) -> Path:
        path = self.home / "plugins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.encode() if isinstance(source, str) else source)
        return path


@pytest.fixture
def environment(tmp_path: Path) -> Callable[..., Isolated]:
    """Make a virtual environment; without an index, pip has none."""

    def make(name: str | Path = "env", *, index: str = "") -> Isolated:
        return Isolated(tmp_path / name, index=index)

    return make


@pytest.fixture(scope="session")
def locked_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``set.json``: two packages of which one needs the other, a file and a directory; do not change.

    The plugins are greet, big and hello; hello is disabled.
    """
    directory = tmp_path_factory.mktemp("locked")
    here = Isolated(directory / "env")
    write_wheel("made-helper", plugin=None, directory=directory)
    wheel = write_wheel("greet-plugin", plugin="greet", requires=("made-helper>=1",), directory=directory)
    here.variables["PIP_FIND_LINKS"] = str(directory)
    here.json("plugin", "install", wheel)
    here.drop("hello.py", source_of_plugin("hello"))
    here.drop("big/__init__.py", source_of_plugin("big", top="from .part import X"))
    here.drop("big/part.py", "X = '中文'\n")
    here.json("plugin", "disable", "hello")
    (directory / "out").mkdir()
    here.json("plugin", "lock", "-o", directory / "out" / "set.json")
    return directory / "out"


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
