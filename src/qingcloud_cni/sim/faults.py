"""What goes wrong, and on which call: a list of faults, counted down as calls come in."""

from collections import Counter
from collections.abc import Iterable, Mapping

from qingcloud_cni.sim import refusals
from qingcloud_cni.sim.refusals import Refusal
from qingcloud_cni.sim.topology import FaultSpec

# Answered with a refusal; nothing is done.
REFUSE = "refuse"  # with the fault's own code and message
CLOCK_SKEW = "clock-skew"
WRONG_KEYS = "wrong-keys"
CALL_QUOTA = "call-quota"
NIC_QUOTA = "nic-quota"  # of the account
ADDRESS_QUOTA = "address-quota"  # and DescribeVxnets shows no free address until a later CreateNics there succeeds

# No answer, nothing is done.
SILENCE = "silence"  # until the client gives up
RESET = "reset"  # the connection breaks

# What arrives is not the answer.
BAD_GATEWAY = "bad-gateway"  # nothing is done
NOT_JSON = "not-json"  # done
LOSE_REPLY = "lose-reply"  # done, but the connection breaks before the answer

# The call is answered, its job goes wrong.
FAIL_JOB = "fail-job"  # the job of this call ends failed and has done nothing
LOSE_LINK = "lose-link"  # the attach job succeeds, and no link appears

EFFECTS: dict[str, tuple[str, ...]] = {  # every effect there is, and the actions it is for; none named: for all
    REFUSE: (),
    CLOCK_SKEW: (),
    WRONG_KEYS: (),
    CALL_QUOTA: (),
    NIC_QUOTA: ("CreateNics",),
    ADDRESS_QUOTA: ("CreateNics",),
    SILENCE: (),
    RESET: (),
    BAD_GATEWAY: (),
    NOT_JSON: (),
    LOSE_REPLY: (),
    FAIL_JOB: ("AttachNics", "DetachNics"),
    LOSE_LINK: ("AttachNics",),
}
IN_STEAD = frozenset({SILENCE, RESET, BAD_GATEWAY})  # the call never reaches the cloud
AFTERWARDS = frozenset({NOT_JSON, LOSE_REPLY})  # the cloud's answer does not reach the client


class Faults:
    """Decides for each call which faults strike it."""

    def __init__(self, specs: Iterable[FaultSpec], calls: Mapping[str, int] | None = None) -> None:
        """*calls* are those counted already, by action and in all ("*"); none if not told."""
        self.specs = tuple(specs)
        for spec in self.specs:
            _check(spec)
        self.calls: Counter[str] = Counter(calls or {})

    def strike(self, action: str) -> tuple[FaultSpec, ...]:
        """Count a call of *action* and find the faults that strike it, in the order of the list."""
        self.calls.update((action, "*"))
        return tuple(
            spec
            for spec in self.specs
            if spec.action in {action, "*"}
            and action in (EFFECTS[spec.effect] or (action,))
            and spec.nth <= self.calls[spec.action] < spec.nth + spec.times
        )

    def left(self, spec: FaultSpec) -> int:
        """How many calls a fault will still strike."""
        return min(max(spec.nth + spec.times - 1 - self.calls[spec.action], 0), spec.times)


def refusal_of(spec: FaultSpec, params: Mapping[str, str]) -> Refusal | None:
    """How a call with *params* is refused for a fault's sake; None where its effect is another."""
    if spec.effect == REFUSE:
        return Refusal(spec.code, spec.message)
    if spec.effect == CLOCK_SKEW:
        return refusals.expired(params.get("time_stamp", ""))
    if spec.effect == WRONG_KEYS:
        return refusals.unknown_key(params.get("access_key_id", ""))
    if spec.effect == CALL_QUOTA:
        return refusals.quota("the API calls of this hour are used up")
    if spec.effect == NIC_QUOTA:
        return refusals.quota("the nics of this account are used up")
    if spec.effect == ADDRESS_QUOTA:
        return refusals.quota(f"vxnet [{params.get('vxnet', '').strip()}] has no free addresses")
    return None


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
