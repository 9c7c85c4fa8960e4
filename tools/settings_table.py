"""Writes the table of settings in docs/configuration.md from the agent's own.

`python -m tools.settings_table` rewrites the page, `--check` says with its exit status whether that is needed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from qingcloud_cni.agent.settings.settings import SETTINGS
from tools.generated import Part


def rows() -> Iterator[str]:
    yield "| Setting | Environment variable | Value | Default | Meaning |"
    yield "|---|---|---|---|---|"
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default != "" else "\u2013"
        cells = (f"`{setting.name}`", f"`{setting.variable}`", setting.kind.wanted, default, setting.help)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


TABLE = Part(Path(__file__).parents[1] / "docs" / "configuration.md", "tools.settings_table", rows)

if __name__ == "__main__":
    sys.exit(TABLE.main())
