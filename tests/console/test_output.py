"""Output: one place that prints, for people and for programs."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from apt.console import output
from apt.console.errors import AptError, CannotWriteError, ExitCode, MissingDependencyError, NotFoundError, explain
from apt.console.table import Result, Table


@dataclass(frozen=True)
class Sample:
    name: str
    path: Path
    values: tuple[float, ...]

    def tables(self) -> list[Table]:
        return [Table("样本", ("name", "value"), [(self.name, f"{v:.2f}") for v in self.values])]


SAMPLE = Sample("名字", Path("/x"), (1.5, 22.25, math.nan))


@pytest.fixture(autouse=True)
def fresh() -> None:
    output.configure()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.configure(json=True)
    output.emit(SAMPLE)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "名字", "path": "/x", "values": [1.5, 22.25, None]}
    assert "名字" in captured.out


def test_table_is_aligned_by_display_width(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit(SAMPLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "样本"
    assert len({output.display_width(line) for line in lines[2:]}) == 1
    assert isinstance(SAMPLE, Result)


def test_talk_goes_to_stderr_and_can_be_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("talk")
    output.configure(quiet=True)
    output.note("silence")
    output.warn("danger")
    assert capsys.readouterr() == ("", "talk\nwarning: danger\n")


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.configure(json=True)
    output.fail(NotFoundError("no\nmodel", hint="make one"))
    captured = capsys.readouterr()
    assert captured.err == "error: no model (make one)\n"
    assert json.loads(captured.out)["error"]["exit_code"] == ExitCode.NOT_FOUND


def test_a_poor_terminal_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stderr", stream)
    output.note("中")
    stream.seek(0)
    assert stream.read() == "\\u4e2d\n"


def test_explain() -> None:
    assert isinstance(explain(PermissionError(13, "Permission denied", "/x")), CannotWriteError)
    assert isinstance(explain(OSError(28, "No space left on device")), CannotWriteError)
    assert isinstance(explain(FileNotFoundError(2, "No such file", "/x")), NotFoundError)
    gone = explain(FileNotFoundError(2, "No such file"))  # as os.getcwd() raises it
    assert gone is not None
    assert "None" not in str(gone)
    missing = explain(ModuleNotFoundError("No module named 'oss2'", name="oss2"))
    assert isinstance(missing, MissingDependencyError)
    assert "pip install oss2" in str(missing)
    assert explain(ValueError("a fault of ours")) is None
    error = AptError("x")
    assert explain(error) is error


def test_a_nearly_full_disk_is_no_success(tmp_path: Path) -> None:
    """A write that takes a part only: Python loses the rest when PYTHONUNBUFFERED is set."""
    import subprocess
    import sys

    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300));"
        "from apt.cli.main import main; sys.exit(main(['info', 'tiny', '--json']))"
    )
    with (tmp_path / "out.json").open("wb") as out:
        ran = subprocess.run(
            [sys.executable, "-u", "-c", program], stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ran.returncode == ExitCode.CANNOT_WRITE and "Traceback" not in ran.stderr
