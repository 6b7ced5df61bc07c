"""The user's drop-ins as the package ``apt_dropins``: only sealed code is imported from it, and only from source.

Cached bytecode is neither read nor written. Python takes it for current while size and time of the source agree, so
that it could be older than what was sealed, or another's. Beside its own files a drop-in may import the helpers of the
directory (``_name.py``, ``_name/``), which are part of its seal; another plugin is imported only by itself.
"""

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from apt.plugins import index, ownership

#: The package through which drop-in files are imported: its path is the user's plugin directory.
DROPINS: Final = "apt_dropins"


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module's source whenever it is imported."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        code: types.CodeType = self.source_to_code(self.get_data(path), path)
        return code


_SOURCE: Final = (_SourceLoader, importlib.machinery.SOURCE_SUFFIXES)
_NATIVE: Final = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)


class _Finder:
    """Finds what is below :data:`DROPINS`, and leaves nothing there to Python's own finders."""

    def __init__(self) -> None:
        self.open: set[str] = set()

    def find_spec(self, fullname: str, path: Sequence[str] | None, _target: Any = None) -> Any:
        """Return the spec of a module.

        :raises ImportError: for another plugin, which this process has not let in.
        """
        package, *inner = fullname.split(".")
        if package != DROPINS or not inner:
            return None
        kinds = (_SOURCE,) if len(inner) == 1 else (_NATIVE, _SOURCE)  # native code lies in packages only
        for place in path or ():
            spec = importlib.machinery.FileFinder(place, *kinds).find_spec(fullname)
            if spec is None or inner[-1] == "__pycache__":
                continue
            if not inner[0].startswith("_") and inner[0] not in self.open:
                raise ImportError(f"{inner[0]} is a plugin of its own; what drop-ins share lies in a file _name.py")
            return spec
        raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


_finder: Final = _Finder()


def let_in(module: str) -> None:
    """Make a drop-in importable, after its seal was looked at; other modules below it too.

    :param module: ``"apt_dropins.NAME"``.
    """
    package = sys.modules.get(DROPINS)
    if package is None or list(package.__path__) != [index.plugin_directory()]:
        for name in [n for n in sys.modules if n == DROPINS or n.startswith(f"{DROPINS}.")]:
            del sys.modules[name]
        package = types.ModuleType(DROPINS, "The user's drop-in plugins.")
        package.__path__ = [index.plugin_directory()]
        sys.modules[DROPINS] = package
        _finder.open.clear()
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.open.add(module.split(".")[1])


def helpers(root: Path) -> list[Path]:
    """Return what a drop-in may import beside itself: ``_name.py`` and ``_name/`` of its directory.

    :raises OSError: when the directory cannot be read.
    """
    entries = sorted(entry for entry in root.parent.iterdir() if entry.name.startswith("_") and entry != root)
    return [e for e in entries if e.suffix == ".py" or (e.name != "__pycache__" and e.is_dir())]


def fault(root: Path) -> str:
    """Return why a drop-in may not be run, in one line: others could have written it or a helper of it."""
    try:
        judged = (root, *helpers(root))
    except OSError as error:
        return f"{error.filename} cannot be looked at: {error.strerror}"
    return next((reason for path in judged if (reason := ownership.fault(path))), "")
