"""Start of the command: what can be answered from the cached index is answered before Typer is imported.

``--version``, ``--help`` and ``plugin list`` are asked most often and by scripts, completion at every press of the Tab
key; they must cost what starting Python costs. So this file, :mod:`apt.plugins.index` and :mod:`apt.plugins.completion`
import nothing beyond what the interpreter has loaded anyway.
"""

import os
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
    data = None
    if arguments == ("--version",):
        from apt_model import __version__

        data = f"apt_model {__version__}".encode()
    elif arguments in _READY and not os.environ.get("APT_SAFE_MODE"):
        from apt.plugins import index

        data = index.ready_bytes(_READY[arguments]) or _built(_READY[arguments])
    elif arguments[:1] == ("__complete",):
        from apt.plugins import completion

        return completion.main(list(arguments[1:]))
    if data is not None and _say(data):
        return 0
    from apt.cli.main import main as run

    return run(list(arguments))


def _built(section: str) -> bytes | None:
    """Build the index and return a section of it; ``None`` when that fails, and the full path is to tell why."""
    from apt.plugins import build

    try:
        return build.sections(build.build())[section].encode()
    except Exception:  # whatever it is, the command that asks again tells it in one line
        return None


def _say(data: bytes) -> bool:
    """Write UTF-8 text to stdout; false when the stream cannot take it plainly and the full path must."""
    try:
        if sys.stdout.encoding != "utf-8":
            return False
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.flush()
    except (OSError, AttributeError):  # a stream that the caller closed is None
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
