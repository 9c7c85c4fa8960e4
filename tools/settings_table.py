"""Writes the table of settings in docs/configuration.md from the agent's own, so that the two cannot part.

`python tools/settings_table.py` rewrites the page, `--check` says with its exit status whether that is needed.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from qingcloud_cni.agent.settings import SETTINGS

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- begin of the table of settings: written by tools/settings_table.py -->\n"
END = "<!-- end of the table of settings -->\n"


def rows() -> Iterator[str]:
    yield "| Setting | Environment variable | Value | Default | Meaning |"
    yield "|---|---|---|---|---|"
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default != "" else "\u2013"
        cells = (f"`{setting.name}`", f"`{setting.variable}`", setting.kind.wanted, default, setting.help)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def with_table(page: str) -> str:
    """*page* with the table between its two marks as it must be."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE}: the marks around the table are missing")
    return before + begin + "\n" + "\n".join(rows()) + "\n\n" + end + after


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of settings into docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    is_check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_table(page)
    if is_check and page != wanted:
        print(f"{PAGE} is out of date: run `python tools/settings_table.py`", file=sys.stderr)
        return 1
    if not is_check:
        PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
