"""Makes ``training_helpers`` importable (tests are imported by file, without packages), and runs jobs of processes."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

#: A job's folder, and what each of its processes found.
Job = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def on_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """Run a script on two gloo processes; the job runs once, whichever workers of pytest-xdist ask for it.

    The script gets a folder as its first argument, into which each process writes ``rank{n}.json``; ``stdout`` is put
    beside them.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def run(script: Path, *arguments: str) -> Job:
        folder = shared / script.stem
        done = folder / "stdout"
        with (shared / f"{script.stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits: the job keeps two cores busy anyway
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                done.write_text(_ran(script, str(folder), *arguments))
        return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]

    return run


def _ran(script: Path, *arguments: str) -> str:
    """Run a script under torchrun and return what it printed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(script.parent), *sys.path])
    job = subprocess.run(
        [*torchrun, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert job.returncode == 0, job.stderr[-4000:]
    return job.stdout
