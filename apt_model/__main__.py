"""Start of the command: what can be answered from the cached index is answered before Typer is imported.

``--version``, ``--help`` and ``plugin list`` are asked most often and by scripts; they must cost what starting
Python costs. So this file and :mod:`apt.plugins.index` import nothing beyond what the interpreter has loaded anyway.
"""

import sys

#: What the index holds a ready text for, by the arguments that ask for it.
_READY = {
    ("--help",): "help",
    ("-h",): "help",
    ("plugin", "list"): "list",
    ("plugin", "list", "--json"): "list-json",
}


def main() -> int:
    """Run the command line of this process and return its exit code."""
    arguments = tuple(sys.argv[1:])
    text = None
    if arguments == ("--version",):
        from apt_model import __version__

        text = f"apt_model {__version__}"
    elif arguments in _READY:
        from apt import language
        from apt.plugins import index

        section = _READY[arguments]
        if language() != "en" and section != "list-json":  # JSON is the same in every language
            section += f".{language()}"
        text = index.ready_text(section)
    if text is not None and _say(text):
        return 0
    from apt.cli.main import main as run

    return run(list(arguments))


def _say(text: str) -> bool:
    """Write the text to stdout; false when the stream cannot take it plainly and the full path must."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, UnicodeEncodeError, AttributeError):  # a stream that the caller closed is None
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
