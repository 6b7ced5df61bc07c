"""What a wheel must not put into the environment: files of others, and what Python runs at its start."""

import csv
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath
from typing import Final

from apt.console.errors import NotFoundError
from apt.plugins import index
from apt.plugins.dependencies import HELD
from apt.plugins.distributions import canonical, find, name_of, recorded
from apt.plugins.wheels import Wheel

#: Modules that Python imports by itself.
_AT_START: Final = ("sitecustomize", "usercustomize")
#: Packages that no plugin adds to: an editable installation of ours has no list of them.
_OURS: Final = ("apt", "apt_model", *HELD)
_SCRIPTS: Final = ("apt_model", "apt-model")


def fault(wheel: Wheel) -> str:
    """Return the first member of a wheel that must not be installed and why, in one line; ``""`` when all may."""
    for script in wheel.scripts:
        if script in _SCRIPTS:
            return f"its script {script!r} would take the place of apt_model's own"
    places = [(m, *_place(m)) for m in wheel.members]
    for member, scheme, place in places:
        if reason := _by_name(scheme, place, wheel.information):
            return f"its member {str(member)!r} {reason}"
    files, modules = _of_others(wheel.name, {p.parts[0] for _, scheme, p in places if scheme == "lib"})
    own = _own_files(wheel.name)
    for member, scheme, place in places:
        if scheme == "lib":
            owner = files.get(place) or modules.get(_module(place.parts[0]), "")
            if owner:
                return f"its member {str(member)!r} belongs to {owner}, which is installed"
        elif (path := Path(_root(scheme), place)).exists() and path.resolve() not in own:
            return f"its member {str(member)!r} would replace {path}"
    return ""


def _place(member: PurePosixPath) -> tuple[str, PurePosixPath]:
    """Return into which directory a member goes (``lib``, ``scripts``, ``data``, ``headers``) and where below it."""
    parts = member.parts
    if len(parts) < 3 or not parts[0].endswith(".data"):
        return "lib", member
    scheme, place = parts[1], PurePosixPath(*parts[2:])
    if scheme in ("purelib", "platlib"):
        return "lib", place
    library = PurePosixPath(sysconfig.get_path("purelib"))
    if scheme == "data":
        path = PurePosixPath(_root("data"), place)
        for other, directory in (("lib", library), ("scripts", PurePosixPath(_root("scripts")))):
            if path.is_relative_to(directory) and path != directory:
                return other, path.relative_to(directory)
    return scheme, place


def _root(scheme: str) -> str:
    return sysconfig.get_path("scripts" if scheme == "scripts" else "include" if scheme == "headers" else "data")


def _by_name(scheme: str, place: PurePosixPath, information: str) -> str:
    """Return why nothing of that name is installed, whatever is there."""
    top = place.parts[0]
    if scheme != "lib":
        taken = scheme == "scripts" and place.stem in _SCRIPTS
        return "would take the place of apt_model's own" if taken else ""
    if (len(place.parts) == 1 and place.suffix == ".pth") or _module(top) in _AT_START:
        return "would be run whenever Python starts"
    if top == "__pycache__":
        return "is bytecode of others"
    if top.endswith((".dist-info", ".egg-info")) and top != information:
        return "is metadata of another package"
    if _module(top) in _OURS:
        return f"belongs to {_module(top)}, to which no plugin adds"
    return ""


def _module(top: str) -> str:
    """Return the name under which Python finds a file or directory of ``site-packages``."""
    return top.partition(".")[0]


def _own_files(name: str) -> set[Path]:
    """Return the files of what is installed under a name and would be replaced."""
    dist = find(name)
    return {Path(str(dist.locate_file(file))).resolve() for file in _files(dist)} if dist is not None else set()


def _of_others(name: str, tops: set[str]) -> tuple[dict[PurePosixPath, str], dict[str, str]]:
    """Return what other distributions have below these names: their files, and the modules that are one's alone.

    A directory without ``__init__.py`` may be shared (PEP 420).

    :returns: owners by file, and by the name of a module.
    """
    files: dict[PurePosixPath, str] = {}
    modules: dict[str, str] = {}
    wanted = set(map(_module, tops))
    for each in distributions(path=index.search_path()):
        owner = name_of(each) or PurePosixPath(str(getattr(each, "_path", "?"))).name
        if canonical(owner) == canonical(name):
            continue
        for text in _files(each):
            if _module(text.partition("/")[0]) not in wanted:
                continue
            file = PurePosixPath(text)
            files[file] = owner
            if file.parts[1:] == ("__init__.py",) or (len(file.parts) == 1 and file.suffix in (".py", ".so", ".pyd")):
                modules[_module(file.parts[0])] = owner
    return files, modules


def _files(dist: Distribution) -> list[str]:
    """Return the files of a distribution; none where their list is damaged."""
    try:
        return [name for name, _ in recorded(dist)]
    except NotFoundError:  # an egg has a list of another form
        return [str(file) for file in dist.files or ()]
    except (OSError, ValueError, csv.Error):
        return []
