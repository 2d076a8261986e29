"""The escape suite starts real supervisors with the driver tests' rig."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "integration" / "drivers")]
