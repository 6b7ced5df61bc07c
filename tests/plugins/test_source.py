"""What a plugin's source says of itself, without being executed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.console.errors import BadInputError
from apt.plugins.source import read_source


def read(tmp_path: Path, text: str, wanted: str = "", name: str = "mine.py", module: str = "mine") -> dict:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return read_source(path, module, wanted)


def test_literals_constants_and_f_strings_are_known(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "from losses import huber as robust\nROOM = 'a.b'\nclass P(base.Plugin):\n"
        "    name = '名字'\n    version: str = '2'\n    api = 1\n    requires = ('x', 'y')\n    author = nobody()\n"
        "    def register_commands(self, r):\n"
        "        r.add_command('go', f'{ROOM}.commands:go', help='Go.')\n"
        "        r.add_command(name='say', target=self.say)\n"
        "        r.add_command(computed(), self.say)\n"
        "    def register_components(self, r):\n"
        "        r.add_component('loss', 'huber', robust, schema=Schema)\n"
        "        r.add_component('loss', 'own', f'{ROOM}:Own', summary='s')\n"
        "    def on_training_step(self): ...\n    def helper(self): ...\n"
        "class Schema: ...\n",
    )
    assert found == {
        "class": "mine:P",
        "name": "名字",
        "version": "2",
        "api": 1,
        "requires": ["x", "y"],
        "hooks": ["on_training_step", "register_commands", "register_components"],
        "commands": [
            {"name": "go", "target": "a.b.commands:go", "help": "Go."},
            {"name": "say", "target": "", "help": ""},
        ],
        "components": [
            {"kind": "loss", "name": "huber", "target": "losses:huber", "schema": "mine:Schema", "summary": ""},
            {"kind": "loss", "name": "own", "target": "a.b:Own", "schema": "", "summary": "s"},
        ],
    }


def test_wanted_class_is_read_where_it_is_defined(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "inner.py").write_text("class Deep(Base):\n    name = 'deep'\n")
    text = "from .inner import Deep as Shown\nclass Other(Plugin):\n    name = 'other'\n"
    found = read(tmp_path, text, "Shown", "pack/__init__.py", "pack")
    assert (found["class"], found["name"]) == ("pack.inner:Deep", "deep")
    assert read(tmp_path, "from elsewhere import Deep\n", "Deep", "pack/__init__.py", "pack") == {}
    assert read(tmp_path, "from pack import Deep\n", "Deep", "pack/__init__.py", "pack") == {}


def test_values_of_the_wrong_kind_are_left_to_the_trial(tmp_path: Path) -> None:
    text = "class P(Plugin):\n    name = 3\n    version = ''\n    api = True\n    requires = 'x'\n    conflicts = [1]\n"
    nothing = {"class": "mine:P", "hooks": [], "commands": [], "components": []}
    assert read(tmp_path, text) == nothing
    assert read(tmp_path, f"class P(Plugin):\n    api = 0x{'f' * 9000}\n") == nothing


@pytest.mark.parametrize(
    ("top", "body"),
    [
        (f"a = {'x' * 9000!r}\nb = [{'a,' * 50_000}]\n", "requires = b"),
        ("b0 = ['x']\n" + "".join(f"b{i + 1} = [b{i}, b{i}]\n" for i in range(60)), "requires = b60"),
        (f"a = {'x' * 9000!r}\n", "def register_commands(self, r):\n" + " " * 8 + "r.add_command(a, a, a);" * 1000),
    ],
    ids=["one list", "lists of lists", "arguments"],
)
def test_one_value_is_not_named_without_end(tmp_path: Path, top: str, body: str) -> None:
    with pytest.raises(BadInputError, match="values that its source names are longer than 1 MiB"):
        read(tmp_path, f"{top}class P(Plugin):\n    {body}\n")


def test_text_that_would_fill_the_memory_is_not_made(tmp_path: Path) -> None:
    doubled = "".join(f"a{i + 1} = f'{{a{i}}}{{a{i}}}'\n" for i in range(60))
    found = read(tmp_path, f"a0 = 'xx'\n{doubled}class P(Plugin):\n    name = f'{{a2}}'\n    description = a60\n")
    assert (found["name"], "description" in found) == ("xxxxxxxx", False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class (", "mine.py, line 1 is not Python: invalid syntax"),
        ("x = 1\n", "mine.py defines no class derived from apt.plugins.base.Plugin"),
        ("x = " + "[" * 5000, "mine.py"),
        ("x = " + "-" * 200_000 + "1", "mine.py"),
        ("x = " + ".".join("a" * 20_000), "mine.py"),
    ],
)
def test_what_is_no_plugin_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read(tmp_path, text)
    assert caught.value.message.startswith(told)


def test_huge_file_is_not_parsed(tmp_path: Path) -> None:
    assert read(tmp_path, "#" * (1 << 21)) == {}


@given(st.text(alphabet="classPlugin(:)=[]'\"\n f{}x,.\\@\0é", max_size=200))
def test_arbitrary_text_gives_facts_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        found = read(tmp_path_factory.getbasetemp(), text)
    except BadInputError as error:
        assert "\n" not in error.message
    else:
        assert isinstance(found, dict)
