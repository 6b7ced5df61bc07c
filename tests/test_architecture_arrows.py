"""Arrows point one way.

cli → plugins → {recipes, training, evaluation, report} → {checkpoint, store} → {registry, console}
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Each room's height; a module may import from lower rooms and from its own.
HEIGHTS = {
    "apt.cli": 5,
    "apt.plugins": 4,
    "apt.recipes": 3,
    "apt.training": 3,
    "apt.evaluation": 3,
    "apt.report": 3,
    "apt.checkpoint": 2,
    "apt.store": 2,
    "apt.assets": 2,
    "apt.registry": 1,
    "apt.events": 1,
    "apt.options": 1,
    "apt.document": 1,
    "apt.console": 0,
}

#: Rooms of one height that may use one another, with the reason.
BETWEEN_NEIGHBOURS = {
    ("apt.document", "apt.registry"): "an unknown key is told with the nearest known word",
    ("apt.training", "apt.evaluation"): "a run is judged by the one set of statistics",
    ("apt.checkpoint", "apt.store"): "a checkpoint is opened by its name in the store",
}
#: What no start of a command may pay for; functions import it on use.
HEAVY = {"torch", "transformers", "numpy", "pydantic", "gguf", "boto3", "yaml", "safetensors", "datasets", "psutil"}


def sources() -> list[Path]:
    return sorted((ROOT / "apt").rglob("*.py")) + sorted((ROOT / "apt_model").rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_only: bool = False) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it; typing-only imports count too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module
            if node.module in ("apt", "apt.plugins", "apt.plugins.builtin", "apt.plugins.optional"):
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(module: str) -> str | None:
    return next((r for r in HEIGHTS if module == r or module.startswith(f"{r}.")), None)


def plugin(module: str) -> str | None:
    parts = module.split(".")
    return ".".join(parts[:4]) if parts[:2] == ["apt", "plugins"] and len(parts) > 3 else None


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    mine = module_of(path)
    here = room(mine)
    if here is None:
        return
    for line, imported in imports(path):
        there = room(imported)
        if there is None or there == here or (here, there) in BETWEEN_NEIGHBOURS:
            continue
        assert HEIGHTS[there] < HEIGHTS[here], f"{path}:{line}: {here} imports {imported}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_do_not_import_each_other_and_nobody_below_the_cli_imports_one(path: Path) -> None:
    mine = plugin(module_of(path))
    for line, imported in imports(path):
        other = plugin(imported)
        assert other is None or other == mine, f"{path}:{line}: imports {imported}; targets are strings"


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in sources()
        if module_of(p).startswith(("apt.cli", "apt_model", "apt.registry", "apt.events", "apt.console"))
        or module_of(p).rpartition(".")[0] == "apt.plugins"
        or (module_of(p).startswith("apt.plugins.") and p.name in ("__init__.py", "commands.py"))
    ],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_what_starts_every_command_imports_nothing_heavy(path: Path) -> None:
    for line, imported in imports(path, top_only=True):
        assert imported.split(".")[0] not in HEAVY, f"{path}:{line}: imports {imported} at the top"


PRUNING = "apt.plugins.optional.pruning"

#: The parts of the pruning room that work is done in, and what each may import of the room.
PRUNING_PARTS = {
    "decoder": {"decoder"},
    "masks": {"masks", "decoder", "goals"},
    "structure": {"structure", "decoder", "goals", "contract"},
}


@pytest.mark.parametrize("part", PRUNING_PARTS)
def test_the_pruning_room_is_layered(part: str) -> None:
    paths = [path for path in sources() if module_of(path).startswith(f"{PRUNING}.{part}.")]
    assert paths
    for path in paths:
        for line, imported in imports(path):
            if imported.startswith(f"{PRUNING}."):
                inner = imported.removeprefix(f"{PRUNING}.").split(".")[0]
                assert inner in PRUNING_PARTS[part], f"{path}:{line}: {part} imports {imported}"
