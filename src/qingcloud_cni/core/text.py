"""Text of others, made fit for logs, tables and terminals."""

import re
from collections.abc import Mapping

from qingcloud_cni.core.errors import InvalidEnvironment

# C0, DEL, C1, and the marks that change the direction of a text: a terminal obeys them.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LONGEST = 256  # characters of a text that the cloud sent


def printable(text: str, longest: int = LONGEST) -> str:
    r"""Return *text* in at most *longest* characters; control characters and such become \x1b or \u202e."""
    shown = escaped(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def escaped(text: str) -> str:
    r"""Return *text* on one line, with \x1b or \u202e for control characters and such."""
    return text if text.isprintable() else "".join(map(_visible, text))


def check_plain(texts: Mapping[str, str]) -> None:
    """InvalidEnvironment if one of *texts*, by name, has control characters."""
    for name, text in texts.items():
        if CONTROL.search(text):
            raise InvalidEnvironment(f"{name} {text!r}: control characters are not supported")


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
