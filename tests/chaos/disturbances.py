"""Disturbances, drawn from a seed: processes die, namespaces and links are moved or deleted, the cloud fails."""

import heapq
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from itertools import count
from typing import Any

from chaos.environment import Environment
from chaos.promises import Promises
from chaos.record import Record
from chaos.runtimes import Plugins
from machines.hosts import Host
from machines.simulator import links, run

PAUSE = 0.9  # seconds between two troubles, on average
LONGEST_FAULT = 8.0  # seconds; less than lie between two looks of the agent, so none sees the same lie twice

_ANY, _MOST = 0.5, 0.8
FAULTS: dict[str, dict[str, Any]] = {
    "replies lost": {"action": "*", "effect": "lose-reply", "chance": _ANY},
    "5100 (busy)": {"action": "*", "effect": "refuse", "code": 5100, "chance": _MOST},
    "2500 (calls used up)": {"action": "*", "effect": "call-quota", "chance": _MOST},
    "1400 on AttachNics": {"action": "AttachNics", "effect": "refuse", "code": 1400, "message": "not now"},
    "1400 on DetachNics": {"action": "DetachNics", "effect": "refuse", "code": 1400, "message": "not now"},
    "1400 on DeleteNics": {"action": "DeleteNics", "effect": "refuse", "code": 1400, "message": "not now"},
    "no addresses": {"action": "CreateNics", "effect": "address-quota"},
    "NICs used up": {"action": "CreateNics", "effect": "nic-quota"},
    "attach jobs fail": {"action": "AttachNics", "effect": "fail-job", "chance": _ANY},
    "detach jobs fail": {"action": "DetachNics", "effect": "fail-job", "chance": _ANY},
    "attach jobs half done": {"action": "AttachNics", "effect": "half-job"},
    "attach jobs without end": {"action": "AttachNics", "effect": "endless-job", "chance": _ANY},
    "detach jobs without end": {"action": "DetachNics", "effect": "endless-job", "chance": _ANY},
    "slow jobs": {"action": "*", "effect": "slow-job", "by": "1s..5s"},
    "links lost": {"action": "AttachNics", "effect": "lose-link", "chance": _ANY},
    "links late": {"action": "AttachNics", "effect": "late-link", "by": "1s..6s"},
    "links early": {"action": "AttachNics", "effect": "early-link", "by": "1s..6s"},
    "links with odd names": {"action": "AttachNics", "effect": "odd-name"},
    "connections reset": {"action": "*", "effect": "reset", "chance": _MOST},
    "502": {"action": "*", "effect": "bad-gateway", "chance": _MOST},
    "no JSON": {"action": "*", "effect": "not-json", "chance": _ANY},
    "silence": {"action": "*", "effect": "silence", "chance": _ANY},
    "late replies": {"action": "*", "effect": "late-reply", "by": "1s..4s"},
    "replies overtaken": {"action": "*", "effect": "overtaken-reply", "chance": _ANY},
    "pages missing": {"action": "DescribeNics", "effect": "missing-page", "chance": _ANY},
    "half lists": {"action": "*", "effect": "partial-list", "chance": _ANY},
    "empty lists": {"action": "*", "effect": "empty-list", "chance": _ANY},
    "clock skew": {"action": "*", "effect": "clock-skew", "chance": _MOST},
}


class Disturbances:
    """Disturbs until `quiet` is set, then ends all that lasts."""

    def __init__(
        self, environment: Environment, plugins: Plugins, promises: Promises, record: Record, rng: random.Random
    ) -> None:
        self._environment = environment
        self._plugins = plugins
        self._promises = promises
        self._record = record
        self._rng = rng
        self._later: list[tuple[float, int, Callable[[], None]]] = []  # what ends a trouble, by time
        self._numbers = count()
        self._kinds: dict[Callable[[], str], int] = {
            self._kill_plugin: 10,
            self._kill_agent: 4,
            self._stop_agent: 2,
            self._kill_api: 2,
            self._set_faults: 6,
            self._delete_namespace: 5,
            self._rename_link: 3,
            self._move_link_home: 3,
            self._move_link_on: 2,
            self._delete_link: 2,
            self._unpark: 2,
            self._detach: 2,
            self._delete_nic: 2,
        }

    def run(self, quiet: threading.Event) -> None:
        record = self._record
        due = record.now
        while not quiet.wait(0.02) and not record.over.is_set():
            self._environment.check_agents()
            while self._later and self._later[0][0] <= record.now:
                heapq.heappop(self._later)[2]()
            if record.now >= due:
                self._disturb()
                due = record.now + self._rng.expovariate(1 / PAUSE)
        while self._later and not record.over.is_set():
            heapq.heappop(self._later)[2]()

    def _disturb(self) -> None:
        kinds = list(self._kinds)
        kind = self._rng.choices(kinds, [self._kinds[k] for k in kinds])[0]
        if what := kind():
            self._record.tell(what)
            self._record.count(f"trouble: {kind.__name__.strip('_').replace('_', ' ')}")

    def _in(self, least: float, most: float, end: Callable[[], None]) -> None:
        heapq.heappush(self._later, (self._record.now + self._rng.uniform(least, most), next(self._numbers), end))

    # --- processes; "" where there is none to hurt ---------------------------------------------------

    def _kill_plugin(self) -> str:
        killed = self._plugins.kill_one(self._rng)
        return f"kill -9 of a plugin: {killed}" if killed else ""

    def _kill_agent(self) -> str:
        return self._end_agent(self._environment.kill_agent, "kill -9 of the agent of {}")

    def _stop_agent(self) -> str:
        return self._end_agent(self._environment.stop_agent, "the agent of {} is stopped")

    def _end_agent(self, end: Callable[[Host], None], words: str) -> str:
        running = [host for host in self._environment.hosts if host.name in self._environment.up]
        if not running:
            return ""
        host = self._rng.choice(running)
        end(host)
        self._in(0.0, self._rng.choice((0.2, 3.0)), partial(self._start_agent, host))
        return words.format(host.name)

    def _start_agent(self, host: Host) -> None:
        self._environment.start_agent(host)
        self._record.tell(f"an agent is started on {host.name}")

    def _kill_api(self) -> str:
        if not self._environment.is_api_up:
            return ""
        self._environment.kill_api()
        self._in(0.2, 8.0, self._start_api)
        return "kill -9 of the cloud's API"

    def _start_api(self) -> None:
        self._environment.start_api()
        self._record.tell("the cloud's API is back")

    # --- the cloud -----------------------------------------------------------------------------------

    def _set_faults(self) -> str:
        if not self._environment.is_api_up:
            return ""
        chosen = self._rng.sample(list(FAULTS), self._rng.choice((1, 1, 2)))
        seconds = self._rng.uniform(2.0, LONGEST_FAULT)
        self._environment.sim.set_faults(*(FAULTS[name] | {"lasts": seconds} for name in chosen))
        return f"the cloud, for {seconds:.0f} s: {', '.join(chosen)}"

    def _detach(self) -> str:
        return self._at_console("DetachNics")

    def _delete_nic(self) -> str:
        """Delete a NIC, detached before, as a person who tidies up."""
        detached = self._at_console("DetachNics")
        nic_id = detached.rpartition(" ")[2]
        if detached:
            self._in(0.5, 1.0, partial(self._call, "DeleteNics", nic_id))
        return detached and f"{detached}, and deleted"

    def _at_console(self, action: str) -> str:
        if not self._environment.is_api_up:
            return ""
        host = self._rng.choice(self._environment.hosts)
        nics = sorted(host.cloud_nics())
        if not nics:
            return ""
        nic_id = self._rng.choice(nics)
        self._promises.take(nic_id, f"{action} at the console")
        self._call(action, nic_id)
        return f"somebody at the console, {host.name}: {action} {nic_id}"

    def _call(self, action: str, nic_id: str) -> None:
        with suppress(OSError, HTTPException, ValueError):  # the faults are for everybody
            answer = self._environment.sim.try_call(action, nics=[nic_id])
            self._record.note(f"{action} {nic_id} at the console: {answer}")

    # --- containers and their links ------------------------------------------------------------------

    def _delete_namespace(self) -> str:
        found = self._promises.any_container(self._rng)
        if found is None:
            return ""
        _, container = found
        self._promises.disturb(container, "its namespace was deleted")
        run("ip", "netns", "delete", container.name, check=False)
        return f"the namespace of {container.name} is deleted"

    def _rename_link(self) -> str:
        return self._with_link("down name wan0", "is renamed")

    def _move_link_home(self) -> str:
        return self._with_link("netns {host}", "is moved to the host")

    def _move_link_on(self) -> str:
        return self._with_link("down name wan1 netns {other}", "is moved to the namespace of {other}")

    def _delete_link(self) -> str:
        """Stands for a NIC that is pulled: real ones cannot be deleted so."""
        return self._with_link("", "is deleted")

    def _with_link(self, change: str, words: str) -> str:
        promises = self._promises.promises()
        other = self._promises.any_container(self._rng)
        if not promises or other is None:
            return ""
        promise = self._rng.choice(promises)
        names = {"host": promise.host.netns, "other": other[1].name}
        text = f"the link of {promise.name} {words.format(**names)}"
        self._promises.disturb(promise.container, text)
        verb = ["set", "dev", "eth0", *change.format(**names).split()] if change else ["delete", "dev", "eth0"]
        run("ip", "-n", promise.name, "link", *verb, check=False)
        return text

    def _unpark(self) -> str:
        """Move a parked NIC to the host, where udev and others see it."""
        host = self._rng.choice(self._environment.hosts)
        parked = [row["ifname"] for row in links(host.parking.name).values() if row["ifname"] != "lo"]
        if not parked:
            return ""
        name = self._rng.choice(sorted(parked))
        run("ip", "-n", host.parking.name, "link", "set", "dev", name, "netns", host.netns, check=False)
        return f"somebody moves the parked {name} back to {host.name}"
