"""Durations as users write them: `3s`, `500ms`, `5m`, plain seconds, and ranges such as `2s..4s`."""

import re

from qingcloud_cni.sim.topology.topology import Range

_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")


def parse_range(text: str | float) -> Range:
    """Read `2s..4s`, `200ms..1.5s`, `3s` or plain seconds; ValueError says what is wrong with it."""
    parts = str(text).strip().split("..")
    matches = [_DURATION.fullmatch(part.strip()) for part in parts]
    if len(parts) > 2 or not all(matches):
        raise ValueError(f"{text!r} is no duration: write 3s, 500ms or a range such as 2s..4s")
    seconds = [float(match[1]) * _UNIT[match[2]] for match in matches if match]
    low, high = seconds[0], seconds[-1]
    if low > high:
        raise ValueError(f"{text!r} ends before it begins")
    return low, high


def parse_duration(text: str | float) -> float:
    """Read `5m`, `500ms` or plain seconds; ValueError for anything else, ranges included."""
    low, high = parse_range(text)
    if low != high:
        raise ValueError(f"{text!r} is a range: write one duration, such as 5m")
    return low
