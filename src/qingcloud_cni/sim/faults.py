"""What goes wrong, and on which call: the list of faults of a topology, counted down as calls come in."""

from collections import Counter
from collections.abc import Iterable

from qingcloud_cni.sim.topology import FaultSpec

REFUSE = "refuse"  # answered with the fault's code and message; nothing is done
LOSE_REPLY = "lose-reply"  # done, but the connection breaks before the answer
FAIL_JOB = "fail-job"  # the job of this call ends failed and has done nothing
LOSE_LINK = "lose-link"  # the attach job succeeds, and no link appears

EFFECTS: dict[str, tuple[str, ...]] = {  # every effect there is, and the actions it is for; none named: for all
    REFUSE: (),
    LOSE_REPLY: (),
    FAIL_JOB: ("AttachNics", "DetachNics"),
    LOSE_LINK: ("AttachNics",),
}


class Faults:
    """Decides for each call which faults strike it."""

    def __init__(self, specs: Iterable[FaultSpec]) -> None:
        self._specs = tuple(specs)
        for spec in self._specs:
            _check(spec)
        self._calls: Counter[str] = Counter()

    def strike(self, action: str) -> tuple[FaultSpec, ...]:
        """Count a call of *action* and find the faults that strike it, in the order of the topology."""
        self._calls.update((action, "*"))
        return tuple(
            spec
            for spec in self._specs
            if spec.action in {action, "*"} and spec.nth <= self._calls[spec.action] < spec.nth + spec.times
        )


def _check(spec: FaultSpec) -> None:
    """Raise ValueError for a fault that could never strike."""
    if spec.effect not in EFFECTS:
        raise ValueError(f"fault on {spec.action}: effect {spec.effect!r} is none of {', '.join(EFFECTS)}")
    allowed = EFFECTS[spec.effect]
    if allowed and spec.action not in {*allowed, "*"}:
        raise ValueError(f"fault on {spec.action}: {spec.effect} is for {', '.join(allowed)}")
    if spec.nth < 1 or spec.times < 1:
        raise ValueError(f"fault on {spec.action}: nth and times count from 1")
    if spec.effect == REFUSE and spec.code == 0:
        raise ValueError(f"fault on {spec.action}: a refusal needs a code other than 0")
