"""Plans of simulated lives, drawn from a seed. Steps and conditions can be left out."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from qingcloud_cni.sim.topology import Latencies, Limits, Topology, default_topology

STEPS = 70
# How often each step is drawn, in relation to the others; `steps` and `runtime` carry them out.
QUIET: Mapping[str, float] = {
    "add": 26, "burst": 2, "delete": 18, "delete_all": 1, "keep": 4, "die": 6, "give_up": 2, "repeat": 3, "check": 3,
    "collect": 2, "wait": 30, "long": 3, "hours": 0.3, "answers": 4,
    "kill": 2, "crash": 5,
}  # fmt: skip
TROUBLES: Mapping[str, Mapping[str, float]] = {  # by condition
    "cloud": {"storm": 3, "outage": 1.5},
    "console": {"detach": 2, "destroy": 1.5, "elsewhere": 1, "here": 1, "readdress": 1, "rename": 0.5, "stranger": 1},
    "others": {"foreign": 1, "claim": 3},
    "meddling": {"dress_up": 4, "soil": 4, "carry_off": 1, "rip_out": 1, "unpark": 1, "double": 1},
    "machine": {"reboot": 1, "set_clock": 0.5, "drain": 0.7},
    "messages": {"lose_message": 2, "deafen": 1.5, "hide": 1},
    "disk": {"full": 1, "sluggish": 1, "stuck": 1, "damage": 0.5},
    "hostile": {"spoof": 4, "swap": 2, "pose": 2},
    "settings": {"reconfigure": 3},
    "budget": {"rush": 2, "spend": 3, "cut_off": 3},  # the budget is small as well
}
CONDITIONS = (*TROUBLES, "faults", "latency", "limits", "services")


WITH_BUDGET = 0.2  # of the lives
WITH_SETTINGS = 0.25
WITH_REST = 0.15  # of these: quiet hours cost more time than the rest of a life


@dataclass(frozen=True, slots=True)
class Step:
    number: int
    kind: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan with fewer *steps* or *conditions* than its seed draws: the rest happens as in the whole plan."""

    seed: int
    steps: tuple[Step, ...] = ()
    conditions: frozenset[str] = frozenset()

    def rng(self, of: object) -> random.Random:
        """Return a generator for one purpose, which does not depend on what was left out."""
        return random.Random(f"{self.seed}/{of}")

    @property
    def limits(self) -> Limits:
        rng = self.rng("limits")
        tight = Limits(nics_per_instance=rng.choice((64, 8)), nics_per_vxnet=rng.choice((252, 5)),
                       calls_per_hour=rng.choice((0, 0, 300)))  # fmt: skip
        limits = tight if "limits" in self.conditions else Limits()
        quota = self.rng("quota").choice((0, 30, 100, 300))
        return msgspec.structs.replace(limits, calls_per_hour=quota) if "budget" in self.conditions else limits

    @property
    def budget(self) -> int:
        """Calls an hour; in some lives more than the key has."""
        return self.rng("budget").choice((12, 30, 60, 120)) if "budget" in self.conditions else 120

    @property
    def is_hardware(self) -> bool:
        """Whether NICs are like a real host's, or the simulator's."""
        return self.rng("hardware").random() < 0.5

    @property
    def has_rest(self) -> bool:
        """Whether the life ends with a quiet hour whose calls are counted."""
        return "budget" in self.conditions and self.rng("rest").random() < WITH_REST

    def topology(self) -> Topology:
        calls = self.rng("calls").choice(((0.0, 0.0), (0.0, 0.4), (0.0, 0.4), (0.0, 25.0)))  # s; calls end after 20 s
        slow = Latencies(attach=(0.5, 12.0), detach=(0.5, 8.0), call=calls, replug=(0.1, 0.6))
        latencies = slow if "latency" in self.conditions else Latencies()
        return replace(default_topology("sim", 2), latencies=latencies, limits=self.limits)

    def settings(self) -> dict[str, Any]:
        rng = self.rng("settings")
        return {
            "vxnet": ["vxnet-pods001", "vxnet-pods002"],
            "policy": rng.choice(("FailRotate", "RoundRotate", "Random")),
            "max_nics": 12,
            "instance_nic_limit": self.limits.nics_per_instance - 1,  # the primary one does not count
            "min_idle": rng.choice((0, 1, 3)),
            "max_idle": rng.choice((3, 8)),
            "cooldown": rng.choice((0, 5, 130)),
            "idle_ttl": rng.choice((5, 600)),
            "api_budget": self.budget,
        }


def plan(seed: int) -> Plan:
    rng = random.Random(seed)
    rare = {"budget": WITH_BUDGET, "settings": WITH_SETTINGS}  # drawn apart, which leaves the others alone
    conditions = {name for name in CONDITIONS if name not in rare and rng.random() < rng.choice((0.2, 0.6))}
    conditions |= {name for name, share in rare.items() if random.Random(f"{seed}/is {name}").random() < share}
    kinds = dict(QUIET)
    for name in sorted(conditions & TROUBLES.keys()):
        kinds |= TROUBLES[name]
    drawn = rng.choices((*kinds,), (*kinds.values(),), k=rng.randrange(10, STEPS))
    return Plan(seed, tuple(Step(n, kind) for n, kind in enumerate(drawn)), frozenset(conditions))


def _script(*kinds: str, conditions: tuple[str, ...] = ()) -> Plan:
    return Plan(-1, tuple(Step(n, kind) for n, kind in enumerate(kinds)), frozenset(conditions))


SCRIPTS: Mapping[str, Plan] = {
    "short": _script(
        "burst", "answers", "repeat", "delete", "delete", "add", "add", "answers", "die", "long", "rip_out", "long",
        "delete_all", "answers",
        conditions=("services",),
    )
}  # fmt: skip
