"""Text of others, made fit for logs, tables and terminals."""

LONGEST = 256  # characters of a text that the cloud sent


def printable(text: str, longest: int = LONGEST) -> str:
    r"""Return *text* in at most *longest* characters; control characters and such become \x1b or \u202e."""
    shown = text if text.isprintable() else "".join(map(_visible, text[: longest + 1]))
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
