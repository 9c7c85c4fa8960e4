"""Corrupt replies of the cloud: any JSON in any field."""

import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

GARBAGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 10**30, 1.5, float("nan"), 1e300, "", "0", "1", " ", "x" * 5000, "\x1b[31m\u202e",
    "\ud800", [], {}, [[]], [None], {"a": {}}, ["x", 5], "172.20.1.0/24", "172.20.1.7/24", "0.0.0.0/0", "172.20.1.1",
    "192.0.2.9", "fe80::1", "999.1.1.1", "172.16.3.7/99", "52:54:99:00:00:01", "ff:ff:ff:ff:ff:ff",
    "00:00:00:00:00:00", "52:54:99:00:00", "i-other", "qingcni_i-other_0123456789abcdef", "in-use", "available",
    "successful", "terminated", "vxnet-pods002",
)  # fmt: skip


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within *content* with every key or index of it."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from places(value)


def corrupt(body: bytes, rng: random.Random, value: Callable[[], Any], *, changes: int = 1) -> bytes:
    """Replace, remove or repeat *changes* values of a reply; its envelope stays, so that it is read on."""
    content = json.loads(body)
    for _ in range(changes):
        found = [(c, k) for c, k in places(content) if not (c is content and k in {"action", "ret_code"})]
        if not found:
            break
        container, key = rng.choice(found)
        match rng.random():
            case chance if chance < 0.1:
                del container[key]
            case chance if chance < 0.2 and isinstance(container, list):
                container.append(deepcopy(container[key]))
            case _:
                container[key] = deepcopy(value())
    return json.dumps(content).encode()
