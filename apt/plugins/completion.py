"""What may stand at the cursor: answered from the index and the shipped tree of commands, before Typer is imported.

The three scripts in ``shells/`` call ``apt_model __complete SHELL …`` at every press of the Tab key. So this is read as
fast as ``--version``, imports nothing beyond ``os`` and ``sys``, and never a plugin: the tree of the built-in commands
is a text that is made with the documents, all that is installed is the section ``complete`` of the index, and models
are names of directories. :mod:`apt.plugins.completion_tree` writes both texts and describes them.
"""

import os
import sys

from apt.plugins import index
from apt.plugins.completion_words import Line, bash_line, bash_quoted, harmless, words_line

#: The tree of the commands that are shipped.
TREE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "completion_tree.txt")
#: Endings of model files; a directory may be a model too.
_MODEL_FILES = (".gguf", ".safetensors")


class Node:
    """A command: its subcommands, options and arguments, each a list of the fields of its line in the tree."""

    __slots__ = ("_text", "_whole")

    def __init__(self, text: str) -> None:
        self._text = text
        self._whole: dict[str, list[list[str]]] = {}

    def _lines(self, kinds: str) -> list[list[str]]:
        """Return the fields of the lines of these kinds; a root with hundreds of commands is read for what is asked."""
        if kinds not in self._whole:
            lines = self._text.split("\n")
            self._whole[kinds] = [
                line.split("\t") for line in lines if line[:1] and line[0] in kinds and line[1:2] == "\t"
            ]
        return self._whole[kinds]

    @property
    def commands(self) -> list[list[str]]:
        """Name and help of each subcommand."""
        return [line[1:] for line in self._lines("s")]

    @property
    def options(self) -> list[list[str]]:
        """The lines of the options."""
        return self._lines("oO")

    @property
    def arguments(self) -> list[list[str]]:
        """The lines of the arguments, in their order."""
        return self._lines("aA")

    def is_group(self) -> bool:
        """Whether it has subcommands."""
        return "\ns\t" in self._text

    def has(self, word: str) -> bool:
        """Whether it has a subcommand of that name."""
        return f"\ns\t{word}\t" in self._text

    def option(self, name: str) -> list[str] | None:
        """Return the line of the option of that name."""
        return next((line for line in self.options if name in line[1].split()), None)

    def taking(self, word: str) -> list[str] | None:
        """Return the option whose value is the next word: after ``-o`` and ``-qo``, not ``--type=f16`` or ``-oDIR``."""
        if word.startswith("--"):
            found = self.option(word)
            return found if found is not None and found[2] else None
        for place in range(1, len(word)):
            found = self.option(f"-{word[place]}")
            if found is not None and found[2]:
                return found if place == len(word) - 1 else None
        return None

    def values_of(self, number: int) -> str | None:
        """Return what the argument of that number takes; ``None`` when there is none."""
        if number < len(self.arguments):
            return self.arguments[number][1]
        return self.arguments[-1][1] if self.arguments and self.arguments[-1][0] == "A" else None


class Answer:
    """What may stand at the cursor.

    :param candidates: pairs of a word and what it is.
    :param paths: ``files`` or ``directories`` when the shell shall complete these too, else ``none``.
    :param prefix: what of the word at the cursor precedes the candidates (``--type=``).
    """

    __slots__ = ("candidates", "paths", "prefix")

    def __init__(self, candidates: list[tuple[str, str]], paths: str = "none", prefix: str = "") -> None:
        self.candidates = [(word, text) for word, text in candidates if harmless(word)]
        self.paths = paths
        self.prefix = prefix


def main(arguments: list[str]) -> int:
    """Answer ``__complete SHELL …`` on stdout; what cannot be answered is told by the exit code alone.

    A shell asks in the middle of a line that somebody is typing: an error message has no place there.
    """
    line = _line(arguments)
    if line is None:
        return 2
    section = index.ready_text("complete")
    try:
        answer = complete(line, _fresh_section() if section is None else section)
        text = render(arguments[0], line, answer)
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.flush()
    except Exception:  # a broken installation is told of by every other command
        return 1
    return 0


def _line(arguments: list[str]) -> Line | None:
    """Read what the scripts pass; ``None`` for a call of another form."""
    shell, *rest = arguments or [""]
    if shell == "bash" and len(rest) == 3:
        return bash_line(*rest)
    if shell in ("zsh", "fish") and rest and rest[0].isdecimal() and int(rest[0]) + 1 < len(rest):
        return words_line(rest[1:], int(rest[0]), raw=shell == "fish")
    return None


def _fresh_section() -> str:
    """Build the index, as every command does that finds it stale."""
    from apt.plugins import completion_tree, host

    return completion_tree.section(host.load())


def complete(line: Line, section: str) -> Answer:
    """Return what may stand at the cursor of a line, given the index's section ``complete``."""
    with open(TREE, encoding="utf-8") as file:
        texts = (section, file.read())
    name, node, number, given, taking, ended = "", _node(texts, ""), 0, [], None, False
    for word in line.before:
        if taking is not None:
            taking = None
        elif ended:
            number += 1
        elif word == "--":
            ended = True
        elif word.startswith("-") and word != "-":
            given.append(word.partition("=")[0])
            taking = node.taking(word)
        elif node.is_group():
            name = f"{name} {word}".strip()
            if not node.has(word):
                return Answer([])
            node = _node(texts, name)
        else:
            number += 1
    given += [word.partition("=")[0] for word in line.after if word.startswith("-")]
    return _at_cursor(line.word, texts, node, number, given, taking, ended)


def _at_cursor(
    word: str, texts: tuple[str, str], node: Node, number: int, given: list[str], taking: list[str] | None, ended: bool
) -> Answer:
    if taking is not None:
        return _values(taking[2], texts)
    if word.startswith("-") and not ended:
        name, equals, _ = word.partition("=")
        if not equals:
            return Answer(_options(node, given))
        option = node.option(name)
        return Answer([]) if option is None or not option[2] else _values(option[2], texts, f"{name}=")
    if node.is_group():
        return Answer([(name, text) for name, text in node.commands])
    values = node.values_of(number)
    if values is not None:
        answer = _values(values, texts)
        if not ended:  # there it would be read as an option
            answer.candidates = [c for c in answer.candidates if not c[0].startswith("-")]
        return answer
    return Answer([] if ended else _options(node, given))


def _options(node: Node, given: list[str]) -> list[tuple[str, str]]:
    """Return the options that may still be given, all their names."""
    open_ = [o for o in node.options if o[0] == "O" or not any(name in given for name in o[1].split())]
    return [(name, option[3]) for option in open_ for name in option[1].split()]


def _node(texts: tuple[str, str], name: str) -> Node:
    """Return a command of the index, else of the shipped tree."""
    return Node(next((found for text in texts if (found := _block(text, f"@{name}"))), ""))


def _block(text: str, head: str) -> str:
    """Return the lines below a line, up to the next that begins with ``@``."""
    begin = text.find(f"\n{head}\n")
    if begin < 0:
        return ""
    begin += len(head) + 1
    end = text.find("\n@", begin)
    return text[begin:] if end < 0 else text[begin:end]


def _values(marks: str, texts: tuple[str, str], prefix: str = "") -> Answer:
    """Return the values that marks stand for; see :class:`apt.console.completes.Completes`."""
    found: list[tuple[str, str]] = []
    paths = "none"
    for mark in marks.split():
        kind, _, rest = mark.partition(":")
        if kind == "choices":
            found += [(choice, "") for choice in rest.split(",")]
        elif kind in ("plugin", "component"):
            lines = [line.split("\t") for line in _block(texts[0], f"@%{kind}").split("\n") if "\t" in line]
            found += [(line[1], line[2]) for line in lines if not rest or rest == line[0]]
        elif kind == "model":
            found += models()
        paths = {"file": "files", "model": "files", "directory": "directories"}.get(kind, paths)
    return Answer(found, paths, prefix)


def models() -> list[tuple[str, str]]:
    """Return the names of models: the embedded one, the store's, those of the Hugging Face cache."""
    found = [("tiny", "embedded model")]
    for name, directory in _entries(os.path.join(index.home(), "models")):
        if not name.startswith(".") and (directory or name.endswith(".gguf")):
            found.append((name, "in the store"))
    for name, _ in _entries(hub_cache()):
        if name.startswith("models--"):
            found.append((f"hf:{name[len('models--') :].replace('--', '/', 1)}", "in the Hugging Face cache"))
    return found


def hub_cache() -> str:
    """Return the Hugging Face cache; :func:`apt.store.hub_cache` without pathlib."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return os.path.expanduser(cache)
    base = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.path.expanduser(base) if base else os.path.join(cache, "huggingface"), "hub")


def _entries(directory: str) -> list[tuple[str, bool]]:
    """Return the names in a directory, sorted, and whether each is a directory; none of one that cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        return []


def render(shell: str, line: Line, answer: Answer) -> str:
    """Write an answer for the script of a shell: a line of directives, then a candidate a line.

    zsh and fish match, quote and describe candidates themselves. bash does none of that.
    """
    if shell == "bash":
        return _render_bash(line, answer)
    prefix = answer.prefix if shell == "fish" else ""  # zsh sets it aside by itself
    lines = [f"{prefix}{word}\t{text}" if text else f"{prefix}{word}" for word, text in answer.candidates]
    return "\n".join([f"{answer.paths}\t{answer.prefix}", *lines]) + "\n"


def _render_bash(line: Line, answer: Answer) -> str:
    """Write what readline shall insert in place of the part of the word that it replaces.

    Where there are words beside paths the paths are listed here, since bash lists either; else bash lists them, which
    knows ``~name``, variables and the user's settings.
    """
    words = [answer.prefix + word for word, _ in answer.candidates]
    found = [word for word in words if word.startswith(line.word)]
    if found and answer.paths != "none":
        found += [e for e in _paths_here(answer) if e.startswith(line.word) and e not in found]
    paths = "none" if found else answer.paths
    quoted = [q for word in found if (q := bash_quoted(word[line.kept :], line.quote)) is not None]
    space = "nospace" if len(found) == 1 and found[0].endswith("/") else "space"
    return "\n".join([f"{paths} {space}", *quoted]) + "\n"


def _paths_here(answer: Answer) -> list[str]:
    """Return what of the current directory may be meant; directories end in a slash."""
    models = any(word == "tiny" for word, _ in answer.candidates)
    found = []
    for name, directory in _entries("."):
        wanted = directory or (answer.paths == "files" and (not models or name.endswith(_MODEL_FILES)))
        if wanted and not name.startswith((".", "-")) and harmless(name):
            found.append(f"{answer.prefix}{name}{'/' if directory else ''}")
    return found
