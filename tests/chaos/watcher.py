"""Checks all namespaces in rounds by `ip` and `ping`, without agent or cloud."""

import json
import random
import threading
from collections.abc import Iterator
from typing import Any

from chaos.promises import Promise, Promises
from chaos.record import Record
from machines.simulator import run

PAUSE = 0.2  # seconds between rounds, each of which takes about as long
PINGS = 2  # containers that ping in each round


def rows(netns: str, *words: str) -> list[dict[str, Any]] | None:
    """What `ip -j` shows in a namespace; None where there is none of this name any more."""
    done = run("ip", "-n", netns, "-j", *words, check=False)
    return None if done.returncode else [row for row in json.loads(done.stdout or "[]") if row]


def addresses(netns: str) -> set[str]:
    found = rows(netns, "-4", "addr", "show") or []
    return {info["local"] for row in found for info in row["addr_info"] if info["scope"] == "global"}


def faults(promise: Promise) -> list[str]:
    """What the container lacks of what it was promised."""
    name = promise.name
    links, routes = rows(name, "addr", "show"), rows(name, "route", "show")
    if links is None or routes is None:
        return ["its namespace is gone"]
    found = [link for link in links if link["ifname"] == "eth0"]
    if not found:
        return [f"it has no eth0, only {', '.join(link['ifname'] for link in links)}"]
    (link,) = found
    held = [info["local"] for info in link["addr_info"] if info["family"] == "inet"]
    said = {
        f"the MAC of eth0 is {link['address']}": link["address"] != promise.nic_id,
        f"the addresses of eth0 are {held}": held != [promise.address],
        "eth0 is down": "UP" not in link["flags"],
        "there is no default route": not any(
            row["dst"] == "default" and row.get("gateway") == promise.gateway for row in routes
        ),
    }
    return [what for what, is_so in said.items() if is_so]


def is_answered(promise: Promise, address: str) -> bool:
    """Whether one of some echo requests is: a port forwards only some milliseconds after its link is up."""
    ping = ("ping", "-n", "-q", "-c", "1", "-W", "1", address)
    return any(
        run("nsenter", f"--net=/run/netns/{promise.name}", *ping, check=False).returncode == 0 for _ in range(4)
    )


def check(promise: Promise, promises: Promises, record: Record) -> None:
    """Compare with the kernel what was promised; an agent that answered has no excuse."""
    found = faults(promise)
    if found and promises.holds(promise):
        record.fail(
            f"{promise.name} was promised {promise.address}: {'; '.join(found)}", promise.name, promise.nic_id
        )


class Watcher:
    """Checks in rounds until its end; *namespaces* are those of hosts and of parked NICs."""

    def __init__(self, promises: Promises, record: Record, namespaces: tuple[str, ...], rng: random.Random) -> None:
        self._promises = promises
        self._record = record
        self._places = namespaces
        self._rng = rng

    def run(self, over: threading.Event) -> None:
        while not over.wait(PAUSE):
            self._check_duplicate_addresses()
            promises = self._promises.promises()
            for promise in promises:
                check(promise, self._promises, self._record)
            self._ping(promises)
            self._record.count("rounds of the watcher")

    def _check_duplicate_addresses(self) -> None:
        """An address in two namespaces. They are not looked into at one moment, so the first is looked into again."""
        seen: dict[str, str] = {}
        for netns in (*self._places, *(container.name for _, container in self._promises.containers())):
            for address in addresses(netns):
                first = seen.setdefault(address, netns)
                if first != netns and address in addresses(first) and address in addresses(netns):
                    self._record.fail(f"{address} is in {first} and in {netns}", first, netns)

    def _ping(self, promises: list[Promise]) -> None:
        """Some ping the vxnet's router, which must answer, and another container."""
        for promise in self._rng.sample(promises, min(PINGS, len(promises))):
            self._expect(promise, promise.gateway)
            other = self._rng.choice(promises)
            self._expect(promise, other.address, other)
            self._record.count("pings")

    def _expect(self, promise: Promise, address: str, *others: Promise) -> None:
        if not is_answered(promise, address) and all(map(self._promises.holds, (promise, *others))):
            subjects = [word for p in (promise, *others) for word in (p.name, p.nic_id)]
            self._record.fail(f"{promise.name} ({promise.address}) does not reach {address}", *subjects)


def held_macs(netns: str) -> Iterator[str]:
    """Of all links in a namespace."""
    yield from (row["address"] for row in rows(netns, "link", "show") or [])
