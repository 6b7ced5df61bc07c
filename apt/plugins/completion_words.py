"""The words of a command line that is being typed, and how a word is written into one.

A name may hold anything that a file's may: nothing that is completed must reach a shell as more than a word.
"""

#: What bash takes for itself in a word; letters of other scripts stay readable.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")
_BLANKS = " \t\n"
#: Not printable to Python, but parts of Chinese text and of emoji: the ideographic space and the joiner.
_ALLOWED = str.maketrans("", "", "\u3000\u200d")
_PROGRAMS = ("apt_model", "apt-model")


class Line:
    """A command line without the program's name.

    :param before: the words before the one at the cursor, unquoted; ``after``: those behind it.
    :param word: the part of the word at the cursor that precedes the cursor, unquoted.
    :param kept: how many of its characters bash keeps when it inserts a candidate.
    :param quote: the quote that is open at the cursor.
    """

    __slots__ = ("after", "before", "kept", "quote", "word")

    def __init__(self, before: list[str], word: str, after: list[str], kept: int = 0, quote: str = "") -> None:
        self.before = before
        self.word = word
        self.after = after
        self.kept = kept
        self.quote = quote


def words_line(words: list[str], number: int, *, raw: bool) -> Line:
    """Return a line that the shell has split.

    :param words: without the program; ``number``: the place of the word at the cursor.
    :param raw: whether that word is still quoted, as the user typed it.
    """
    word = words[number]
    return Line(words[:number], _split(word, "")[-1].text if raw else word, words[number + 1 :])


def bash_line(breaks: str, before: str, after: str) -> Line | None:
    """Split a line as bash does; ``None`` where a file is named that output goes to: that is bash's own affair.

    ``COMP_WORDS`` would not do: bash cuts words at the colon of ``hf:owner/name`` and at ``=`` for it.

    :param breaks: ``COMP_WORDBREAKS``: readline replaces what follows the last of these in a word.
    :param before: the line up to the cursor; ``after``: the rest of it.
    """
    parts = _split(before, breaks)
    last = parts.pop()
    words = [part.text for part in parts if not part.redirect]
    start = next((i for i, word in enumerate(words) if word.rpartition("/")[2] in _PROGRAMS), 0)
    if last.redirect:
        return None
    rest = [part.text for part in _split(after, breaks) if part.text and not part.redirect]
    if after[:1].strip():  # the rest of the word at the cursor
        rest = rest[1:]
    return Line(words[start + 1 :], last.text, rest, last.kept, last.quote)


class _Part:
    __slots__ = ("kept", "outside", "quote", "redirect", "text")

    def __init__(self, redirect: bool) -> None:
        self.text = ""
        self.kept = self.outside = 0  # outside: what was kept before a quote was opened
        self.quote = ""
        self.redirect = redirect


def _split(line: str, breaks: str) -> list[_Part]:
    """Split a line into words, quotes taken off; the last is the one at the end, empty after a blank."""
    parts = [_Part(False)]
    begun = False  # "" is a word, nothing is none
    escaped = False
    for character in line:
        part = parts[-1]
        if escaped:
            escaped = False
            if part.quote == '"' and character not in '"\\$`':
                part.text += "\\"
            part.text += character
        elif character == "\\" and part.quote != "'":
            escaped = begun = True
        elif part.quote:
            if character == part.quote:
                part.quote = ""
                part.kept = part.outside
            else:
                part.text += character
        elif character in "'\"":
            part.quote, part.outside, part.kept, begun = character, part.kept, len(part.text), True
        elif character in _BLANKS or character in "<>":
            if character in "<>" and part.text.isdecimal():  # 2> is one sign
                parts[-1], begun = _Part(False), False
            if begun:
                parts.append(_Part(False))
                begun = False
            if character in "<>":
                parts[-1].redirect = True
        else:
            begun = True
            part.text += character
            if character in breaks:
                part.kept = len(part.text)
    return parts


def bash_quoted(word: str, quote: str) -> str | None:
    """Write a word so that bash reads it as that word, inside the quote that is open; ``None`` where it cannot."""
    if quote == "'":
        return word.replace("'", "'\\''")
    if quote == '"':
        # Between double quotes bash replaces !word by an earlier line, and a backslash there would stay.
        return None if "!" in word else "".join(f"\\{c}" if c in '"\\$`' else c for c in word)
    return "".join(c if c in _PLAIN or ord(c) > 127 else f"\\{c}" for c in word)


def shown(text: str) -> str:
    """Return a text as one line of what a terminal can show: other characters are left out."""
    if text.isprintable():
        return text
    return " ".join("".join(c for c in text if c.isspace() or harmless(c)).split())


def harmless(word: str) -> bool:
    """Whether a word can be shown on a terminal: no control characters, nothing that turns the writing round."""
    return bool(word) and word.translate(_ALLOWED).isprintable()
