"""Running the command line in this process; makes ``cli_commands`` and ``cli_examples`` importable."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from apt.cli.main import main
from apt.console import output
from apt.plugins import host

sys.path.insert(0, str(Path(__file__).parent))


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Run the command line with the given words; stdout and stderr also hold what native libraries write."""

    def run(*words: str | Path) -> Ran:
        capfd.readouterr()
        host.refresh()  # each call is a process of its own
        try:
            code = main([str(w) for w in words])
        except SystemExit as raised:
            code = raised.code if isinstance(raised.code, int) else 1
        finally:
            output.configure()
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    yield run
    host.refresh()
