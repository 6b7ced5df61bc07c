"""Makes ``pruning_cells`` importable: tests are imported by file, without packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
