"""bench/ is a folder of scripts, not a package of the distribution: its shared part is imported by path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "bench"))
