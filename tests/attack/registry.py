"""All cases, by group."""

from collections.abc import Callable
from dataclasses import dataclass

from attack.scene import Scene

GROUPS = {
    "A": "A container inherits nothing from the one before it.",
    "B": "Who a NIC is, is never decided by what a container can write.",
    "C": "Nothing that comes from the cloud is believed before it is checked.",
    "D": "Nobody without rights can stop, slow or impersonate the agent.",
    "E": "What is removed under a running agent comes back.",
}


@dataclass(frozen=True)
class Case:
    """One attack; *is_short*: also part of `make test`."""

    group: str
    attack: Callable[[Scene], None]
    is_short: bool

    @property
    def name(self) -> str:
        return self.attack.__name__

    @property
    def sentence(self) -> str:
        return " ".join((self.attack.__doc__ or "").split())


CASES: list[Case] = []


def case(group: str, *, is_short: bool = False) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register an attack whose docstring says what is tried, and what must hold."""
    assert group in GROUPS, group

    def register(attack: Callable[[Scene], None]) -> Callable[[Scene], None]:
        found = Case(group, attack, is_short)
        assert found.sentence, f"{found.name} has no sentence"
        CASES.append(found)
        return attack

    return register
