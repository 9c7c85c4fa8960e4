"""What the program costs, measured beside the plugins people know. It plays on the stage that the tests have."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # hosts, simulator
