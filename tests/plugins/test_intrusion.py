"""A wheel that would put files in the place of others, or what Python runs at its start, is refused by its member."""

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.console.errors import BadInputError
from apt.plugins import candidates, host, intrusion, wheels

Make = Callable[..., Path]


@pytest.fixture
def victim(make_wheel: Make, put: Callable[[Path], Path]) -> None:
    put(make_wheel("victim", plugin=None, files={"victim/deep.py": "", "shared/mine.py": "", "alone.py": ""}))


@pytest.mark.usefixtures("victim")
@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("victim/__init__.py", "belongs to victim, which is installed"),
        ("victim/new.py", "belongs to victim"),
        ("shared/mine.py", "belongs to victim"),
        ("alone/__init__.py", "belongs to victim"),
        ("odd-1.0.data/platlib/victim/deep.py", "belongs to victim"),
        ("victim-1.0.dist-info/RECORD", "is metadata of another package"),
        ("other-2.0.dist-info/entry_points.txt", "is metadata of another package"),
        ("start.pth", "whenever Python starts"),
        ("odd-1.0.data/purelib/start.pth", "whenever Python starts"),
        ("sitecustomize.py", "whenever Python starts"),
        ("usercustomize/__init__.py", "whenever Python starts"),
        ("numpy/__init__.py", "belongs to numpy"),
        ("apt/plugins/builtin/evil/__init__.py", "belongs to apt,"),
        ("apt_model.py", "belongs to apt_model,"),
        ("__pycache__/alone.cpython-311.pyc", "is bytecode of others"),
        ("odd-1.0.data/scripts/apt_model", "place of apt_model's own"),
        ("odd-1.0.data/scripts/apt-model", "place of apt_model's own"),
        ("odd-1.0.data/scripts/python", "would replace"),
        ("odd-1.0.data/data/bin/python", "would replace"),
    ],
)
def test_member_that_is_anothers_is_named(member: str, told: str, make_wheel: Make, tmp_path: Path) -> None:
    if "/bin/python" in member and sysconfig.get_path("scripts") != sysconfig.get_path("data") + "/bin":
        pytest.skip("programs lie elsewhere here")
    wheel = make_wheel("odd", files={member: ""})
    with pytest.raises(BadInputError) as refused:
        candidates.look(str(wheel), tmp_path, host.load(), ())
    assert f"is not installed: its member {member!r} " in str(refused.value) and told in str(refused.value)


@pytest.mark.usefixtures("victim")
def test_own_and_shared_directories_are_taken(make_wheel: Make, put: Callable[[Path], Path]) -> None:
    files = {"shared/other.py": "", "odd/start.pth": "", "odd-1.0.data/scripts/odd-tool": ""}
    wheel = make_wheel("odd", files=files)
    assert intrusion.fault(wheels.look(wheel)) == ""
    put(wheel)
    assert intrusion.fault(wheels.look(make_wheel("odd", "2.0", files={"shared/other.py": "#"}))) == ""


def test_entry_point_named_like_our_command_is_refused(make_wheel: Make) -> None:
    points = "[apt_model.plugins]\nodd = odd:Made\n[console_scripts]\napt_model = odd:main\n"
    wheel = wheels.look(make_wheel("odd", files={"odd-1.0.dist-info/entry_points.txt": points}))
    assert intrusion.fault(wheel) == "its script 'apt_model' would take the place of apt_model's own"
