"""Running the command line in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from apt.cli.main import main
from apt.console import output
from apt.plugins import host


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Run the command line with the given words and return exit code, stdout and stderr."""

    def run(*words: str | Path) -> Ran:
        capsys.readouterr()
        host.refresh()  # each call is a process of its own
        try:
            code = main([str(w) for w in words])
        except SystemExit as raised:
            code = raised.code if isinstance(raised.code, int) else 1
        finally:
            output.configure()
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield run
    host.refresh()
