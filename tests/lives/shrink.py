"""Reduces a failing plan while it fails in the same way."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from lives.scenario import Plan

MOST_TRIES = 300


def shrunk(plan: Plan, failure_of: Callable[[Plan], str], *, most_tries: int = MOST_TRIES) -> Plan:
    """Leave out conditions, then ever smaller runs of steps; *failure_of* returns "" if a plan works."""
    kind = kind_of(failure_of(plan))
    left = most_tries
    is_smaller = bool(kind)
    while is_smaller:
        is_smaller = False
        for smaller in _smaller(plan):
            if left <= 0:
                return plan
            left -= 1
            if kind_of(failure_of(smaller)) == kind:
                plan, is_smaller = smaller, True
                break
    return plan


def kind_of(failure: str) -> str:
    """Return a failure without what differs from run to run: ids, numbers and all after eight words."""
    return " ".join(re.sub(r"\S*[\d/]\S*", "#", failure).split()[:8])


def _smaller(plan: Plan) -> Iterator[Plan]:
    for condition in sorted(plan.conditions):
        yield replace(plan, conditions=plan.conditions - {condition})
    size = len(plan.steps)
    while size:
        for start in range(0, len(plan.steps), size):
            yield replace(plan, steps=plan.steps[:start] + plan.steps[start + size :])
        size //= 2
