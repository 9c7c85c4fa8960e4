"""Faults of the simulated API: which calls each strikes, and its effect."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qingcloud_cni.sim.cloud import errors
from qingcloud_cni.sim.cloud.errors import ApiError
from qingcloud_cni.sim.topology import FaultSpec, Range

# The call gets an error and is not carried out.
REFUSE = "refuse"  # with the fault's own code and message
CLOCK_SKEW = "clock-skew"
WRONG_KEYS = "wrong-keys"
CALL_QUOTA = "call-quota"
NIC_QUOTA = "nic-quota"  # of the account
ADDRESS_QUOTA = "address-quota"  # and DescribeVxnets shows no free address until a later CreateNics there succeeds

# The call gets no answer and is not carried out.
SILENCE = "silence"  # until the client gives up
RESET = "reset"  # the connection breaks

# The client gets something else than the answer.
BAD_GATEWAY = "bad-gateway"  # not carried out
NOT_JSON = "not-json"  # carried out
LOSE_REPLY = "lose-reply"  # carried out, but the connection breaks before the answer

# Carried out at once; the answer comes late.
LATE_REPLY = "late-reply"
OVERTAKEN_REPLY = "overtaken-reply"  # after the answer to a call that came later

# The answer is valid, its list is wrong.
MISSING_PAGE = "missing-page"  # no items, with the right total
PARTIAL_LIST = "partial-list"  # half of the items, with a total that fits them
EMPTY_LIST = "empty-list"

# The call is answered, its job goes wrong.
FAIL_JOB = "fail-job"  # the job changes nothing and ends "failed"
HALF_JOB = "half-job"  # the job changes half of its NICs and ends "done with failure"
ENDLESS_JOB = "endless-job"  # the job changes nothing; it fails when the list of faults is replaced
SLOW_JOB = "slow-job"
LOSE_LINK = "lose-link"  # the attach job succeeds, and no link appears
LATE_LINK = "late-link"  # the link appears after the job's end
EARLY_LINK = "early-link"  # the link appears well before the job's end
ODD_NAME = "odd-name"  # the link has another name, again whenever it comes back to the host

# Somebody at the console deletes the NICs of the call.
NIC_GONE = "nic-gone"  # after CreateNics, at the end of an AttachNics job, before any other call

_READS = ("DescribeInstances", "DescribeVxnets", "DescribeNics", "DescribeJobs")
EFFECTS: dict[str, tuple[str, ...]] = {  # every effect, and the actions it is for; (): for all
    **dict.fromkeys((REFUSE, CLOCK_SKEW, WRONG_KEYS, CALL_QUOTA), ()),
    **dict.fromkeys((NIC_QUOTA, ADDRESS_QUOTA), ("CreateNics",)),
    **dict.fromkeys((SILENCE, RESET, BAD_GATEWAY, NOT_JSON, LOSE_REPLY, LATE_REPLY, OVERTAKEN_REPLY), ()),
    **dict.fromkeys((MISSING_PAGE, PARTIAL_LIST, EMPTY_LIST), _READS),
    **dict.fromkeys((FAIL_JOB, HALF_JOB, ENDLESS_JOB, SLOW_JOB), ("AttachNics", "DetachNics")),
    **dict.fromkeys((LOSE_LINK, LATE_LINK, EARLY_LINK, ODD_NAME), ("AttachNics",)),
    NIC_GONE: ("CreateNics", "AttachNics", "DetachNics", "DeleteNics", "ModifyNicAttributes"),
}
DELAYS: dict[str, Range] = {  # seconds from which an effect draws, unless the fault has `by`
    LATE_REPLY: (5.0, 15.0),  # less than the 20 s that the agent's client waits
    SLOW_JOB: (60.0, 180.0),  # hostnic#8 saw attaches of more than 180 s
    LATE_LINK: (5.0, 15.0),
    EARLY_LINK: (5.0, 15.0),
}
NOT_CARRIED_OUT = frozenset({SILENCE, RESET, BAD_GATEWAY})  # the call never reaches the cloud
REPLY_FAULTS = frozenset({NOT_JSON, LOSE_REPLY, LATE_REPLY, OVERTAKEN_REPLY})  # change or delay the answer
CARRIED_OUT = frozenset({NOT_JSON, LOSE_REPLY})  # of those: the call is carried out, whatever the client gets


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that strikes a call. *seconds*: its delay, if that is its effect."""

    spec: FaultSpec
    seconds: float = 0.0

    @property
    def effect(self) -> str:
        return self.spec.effect


@dataclass(frozen=True, slots=True)
class JobFault:
    """How a job goes wrong; by default it does not. Times are in seconds."""

    fails: bool = False
    is_half_done: bool = False
    is_endless: bool = False
    slower: float = 0.0
    loses_links: bool = False
    links_late: float = 0.0  # after the job's end
    links_early: float = 0.0  # before it
    link_name: str = ""  # prefix of its links' names; "": the usual one
    loses_nics: bool = False  # its NICs are deleted when it ends


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a fault: calls of its action in its time, and those that it struck."""

    seen: int = 0
    struck: int = 0


class Faults:
    """Decides for each call which faults strike it."""

    def __init__(
        self, specs: Iterable[FaultSpec], *, rng: random.Random, since: float = 0.0, tallies: Sequence[Tally] = ()
    ) -> None:
        """*since* is when the list came in force; *tallies* are counts to continue from. ValueError as `check`."""
        self.specs = tuple(specs)
        for spec in self.specs:
            check(spec)
        self.since = since
        self.tallies = list(tallies) or [Tally()] * len(self.specs)
        self._rng = rng

    def strike(self, params: Mapping[str, str], now: float) -> tuple[Strike, ...]:
        """Count a call and return the faults that strike it, in the order of the list."""
        action = params["action"].strip()
        struck = []
        for number, spec in enumerate(self.specs):
            if not self._covers(spec, params, now):
                continue
            tally = self.tallies[number]
            hits = (
                action in (EFFECTS[spec.effect] or (action,))
                and tally.seen + 1 >= spec.nth
                and (spec.most is None or tally.struck < spec.most)
                and (spec.chance >= 1.0 or self._rng.random() < spec.chance)
            )
            self.tallies[number] = Tally(tally.seen + 1, tally.struck + hits)
            if hits:
                struck.append(Strike(spec, self.draw_delay(spec)))
        return tuple(struck)

    def left(self, number: int) -> int | None:
        """Calls that the fault of this number will still strike at the most; None without limit."""
        most = self.specs[number].most
        return None if most is None else most - self.tallies[number].struck

    def _covers(self, spec: FaultSpec, params: Mapping[str, str], now: float) -> bool:
        return (
            spec.action in {params["action"].strip(), "*"}
            and self.since + spec.after <= now < self.ends(spec)
            and spec.vxnet in {"", params.get("vxnet", "").strip()}
        )

    def ends(self, spec: FaultSpec) -> float:
        """When the fault ends; infinity if it does not."""
        return float("inf") if spec.lasts is None else self.since + spec.after + spec.lasts

    def draw_delay(self, spec: FaultSpec) -> float:
        span = spec.by or DELAYS.get(spec.effect)
        return self._rng.uniform(*span) if span else 0.0


def error_of(spec: FaultSpec, params: Mapping[str, str]) -> ApiError | None:
    """The error that a fault gives a call with *params*; None if its effect is another."""
    said = {
        REFUSE: ApiError(spec.code, spec.message),
        CLOCK_SKEW: errors.expired(params.get("time_stamp", "")),
        WRONG_KEYS: errors.unknown_key(params.get("access_key_id", "")),
        CALL_QUOTA: errors.quota("the API calls of this hour are used up"),
        NIC_QUOTA: errors.quota("the nics of this account are used up"),
        ADDRESS_QUOTA: errors.quota(f"vxnet [{params.get('vxnet', '').strip()}] has no free addresses"),
    }
    return said.get(spec.effect)


def job_fault(strikes: Iterable[Strike]) -> JobFault:
    """The combined effect of several faults on the job of the call they strike."""
    by_effect = {strike.effect: strike for strike in reversed(tuple(strikes))}  # the first in the list wins

    def seconds(effect: str) -> float:
        return by_effect[effect].seconds if effect in by_effect else 0.0

    return JobFault(
        fails=FAIL_JOB in by_effect,
        is_half_done=HALF_JOB in by_effect,
        is_endless=ENDLESS_JOB in by_effect,
        slower=seconds(SLOW_JOB),
        loses_links=LOSE_LINK in by_effect,
        links_late=seconds(LATE_LINK),
        links_early=seconds(EARLY_LINK),
        link_name=by_effect[ODD_NAME].spec.name if ODD_NAME in by_effect else "",
        loses_nics=NIC_GONE in by_effect,
    )


def check(spec: FaultSpec) -> None:
    """Raise ValueError for a fault that could never strike, or not as specified."""
    if spec.effect not in EFFECTS:
        raise ValueError(f"fault on {spec.action}: effect {spec.effect!r} is none of {', '.join(EFFECTS)}")
    allowed = EFFECTS[spec.effect]
    if allowed and spec.action not in {*allowed, "*"}:
        raise ValueError(f"fault on {spec.action}: {spec.effect} is for {', '.join(allowed)}")
    if spec.nth < 1 or (spec.times is not None and spec.times < 1):
        raise ValueError(f"fault on {spec.action}: nth and times count from 1")
    if not 0.0 < spec.chance <= 1.0:
        raise ValueError(f"fault on {spec.action}: chance {spec.chance:g} is not above 0 and up to 1")
    if spec.lasts is not None and spec.lasts <= 0.0:
        raise ValueError(f"fault on {spec.action}: lasts 0 s leaves it no time")
    if spec.effect == REFUSE and spec.code == 0:
        raise ValueError(f"fault on {spec.action}: a refusal needs a code other than 0")
    if spec.by is not None and spec.effect not in DELAYS:
        raise ValueError(f"fault on {spec.action}: by is for {', '.join(DELAYS)}")
    if spec.vxnet and spec.action != "CreateNics":
        raise ValueError(f"fault on {spec.action}: vxnet is for CreateNics")
