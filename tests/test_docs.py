"""Pages that are generated from code are in step with it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_pages_are_in_step() -> None:
    command = [sys.executable, "tools/generate_docs.py", "--check"]
    environment = {**os.environ, "COLUMNS": "213"}  # the reader's terminal has no say
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
