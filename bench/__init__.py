"""Measurements of the program and of well-known plugins, on the tests' machines."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # hosts, simulator
