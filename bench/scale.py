"""`make scale`: the effect of one key's quota of calls on clusters of 1 to 500 hosts, on a virtual clock.

Whole agents and one simulated cloud; only kernel and disk are fakes in memory. The same seed gives the same table.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.figures import percentile
from inprocess import virtual_time
from inprocess.fleet import Fleet, FleetHost, SeenCall, fleet_of
from qingcloud_cni.cloud import CallOutcome
from qingcloud_cni.core.budget import Urgency

QUOTA = 2000  # calls an hour of one key
DEFAULT_BUDGET = 120
PODS = 10  # per host
HOUR = 3600.0
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- last run: written by `make scale ARGS=--write` -->", "<!-- end of last run -->"


@dataclass(frozen=True)
class Case:
    """A cluster, and the call budget of each of its agents."""

    hosts: int
    api_budget: int
    min_idle: int = 3
    max_idle: int = 8
    quota: int = QUOTA


@dataclass(frozen=True)
class Outcome:
    """The result of a scenario."""

    calls: tuple[SeenCall, ...]
    waits: tuple[float, ...]  # seconds from a pod's first ADD until its NIC

    @property
    def compare(self) -> int:
        """Calls for comparisons, which do not depend on pods."""
        return sum(call.urgency is Urgency.RECONCILE for call in self.calls)

    @property
    def for_pods(self) -> int:
        return len(self.calls) - self.compare

    @property
    def refused(self) -> int:
        return sum(call.outcome is CallOutcome.QUOTA for call in self.calls)

    def busiest_hour(self) -> tuple[SeenCall, ...]:
        """The calls of the busiest hour."""
        best, start = (0, 0), 0
        for end in range(len(self.calls)):
            while self.calls[end].at - self.calls[start].at >= HOUR:
                start += 1
            best = max(best, (end - start + 1, -start))
        return self.calls[-best[1] : -best[1] + best[0]]


Scenario = Callable[[Fleet, asyncio.TaskGroup, Case], Awaitable[None]]


async def scale_out(fleet: Fleet, group: asyncio.TaskGroup, _case: Case) -> None:
    """All hosts join within two minutes; each gets its pods within the next minute."""

    async def join(host: FleetHost) -> None:
        await fleet.clock.sleep(fleet.rng.uniform(0.0, 120.0))
        await fleet.start(host, group)
        await asyncio.gather(*(arrive(host) for _ in range(PODS)))

    async def arrive(host: FleetHost) -> None:
        await fleet.clock.sleep(fleet.rng.uniform(5.0, 60.0))
        await fleet.add(host)

    await asyncio.gather(*(join(host) for host in fleet.hosts))
    await fleet.clock.sleep(HOUR)


async def rolling(fleet: Fleet, group: asyncio.TaskGroup, case: Case) -> None:
    """All pods are replaced within ten minutes: each new one first, on one of the hosts with the fewest pods."""
    await warm(fleet, group)
    fleet.begin_counting(case.quota, case.api_budget)
    old = [(host, name) for host in fleet.hosts for name in sorted(host.pods)]
    fleet.rng.shuffle(old)
    coming = dict.fromkeys(range(len(fleet.hosts)), 0)

    async def replace(host: FleetHost, name: str, at: float) -> None:
        await fleet.clock.sleep(at)
        number = min(
            fleet.rng.sample(range(len(fleet.hosts)), min(len(fleet.hosts), 5)),
            key=lambda n: len(fleet.hosts[n].pods) + coming[n],
        )
        coming[number] += 1
        await fleet.add(fleet.hosts[number])
        coming[number] -= 1
        await fleet.clock.sleep(fleet.rng.uniform(2.0, 10.0))
        await fleet.delete(host, name)

    await asyncio.gather(*(replace(host, name, 600.0 * n / len(old)) for n, (host, name) in enumerate(old)))
    await fleet.clock.sleep(HOUR)


async def churn(fleet: Fleet, group: asyncio.TaskGroup, case: Case) -> None:
    """On each host a pod ends every 90 to 150 s and another takes its place: the second hour of that."""
    await warm(fleet, group)

    async def live(host: FleetHost) -> None:
        end = fleet.clock.now() + HOUR
        while fleet.clock.now() < end:
            await fleet.clock.sleep(fleet.rng.uniform(90.0, 150.0))
            await fleet.delete(host, fleet.rng.choice(sorted(host.pods)))
            await fleet.add(host)

    await asyncio.gather(*map(live, fleet.hosts))  # the pools learn how many NICs are resting at a time
    fleet.begin_counting(case.quota, case.api_budget)
    await asyncio.gather(*map(live, fleet.hosts))


async def warm(fleet: Fleet, group: asyncio.TaskGroup) -> None:
    """Start hosts with their pods and full pools, outside the measurement."""
    await asyncio.gather(*(fleet.start(host, group) for host in fleet.hosts))
    await fleet.settle()
    await asyncio.gather(*(fleet.add(host) for host in fleet.hosts for _ in range(PODS)))
    await fleet.settle()


SCENARIOS: dict[str, Scenario] = {"scale-out": scale_out, "rolling deployment": rolling, "steady churn": churn}
CASES = (
    *(Case(hosts, QUOTA // hosts) for hosts in (1, 10, 100, 500)),
    Case(500, QUOTA // 500, min_idle=PODS, max_idle=PODS + 5),
    Case(500, DEFAULT_BUDGET),
)


def play(name: str, case: Case, seed: int = 1) -> Outcome:
    """Run one scenario."""

    async def main() -> Outcome:
        is_cold = name == "scale-out"
        with tempfile.TemporaryDirectory() as directory:
            quotas = {"api_budget": case.api_budget, "calls_per_hour": case.quota} if is_cold else {}
            pool = {"min_idle": case.min_idle, "max_idle": case.max_idle}
            async with fleet_of(Path(directory), case.hosts, seed=seed, pool=pool, **quotas) as (fleet, group):
                await SCENARIOS[name](fleet, group, case)
                outcome = Outcome(tuple(fleet.calls), tuple(fleet.waits))
        return outcome

    return virtual_time.run(main())


# --- the table -----------------------------------------------------------------------------------------

HEAD = ("Hosts", "`api-budget`", "`min-idle`", "Pods", "waiting", "refill", "release", "compare", "all", "refused",
        "Calls per pod", "p50", "p99", "longest")  # fmt: skip


def row(case: Case, outcome: Outcome) -> tuple[str, ...]:
    busiest = outcome.busiest_hour()
    by_urgency = [sum(call.urgency is urgency for call in busiest) for urgency in
                  (Urgency.WAITING, Urgency.REFILL, Urgency.RELEASE, Urgency.RECONCILE)]  # fmt: skip
    pods = len(outcome.waits)
    return (
        *map(str, (case.hosts, case.api_budget, case.min_idle)),
        *(f"{n:,}" for n in (pods, *by_urgency, len(busiest), outcome.refused)),
        f"{outcome.for_pods / pods:.2f}",
        *(_seconds(percentile(outcome.waits, share)) for share in (0.5, 0.99, 1.0)),
    )  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def as_markdown(name: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return f"**{name[0].upper()}{name[1:]}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make scale ARGS=…", description=__doc__)
    parser.add_argument("--hosts", type=int, action="append", help="only clusters of so many hosts; may be repeated")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="only this scenario; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    given = parser.parse_args()
    cases = [case for case in CASES if not given.hosts or case.hosts in given.hosts]
    tables = []
    for name in given.only or SCENARIOS:
        rows = []
        for case in cases:
            begun = time.monotonic()
            rows.append(row(case, play(name, case, given.seed)))
            print(f"{name}: {' | '.join(rows[-1])}   ({time.monotonic() - begun:.0f} s)", flush=True)
        tables.append(as_markdown(name, rows))
    if given.write:
        write(tables)


def write(tables: Sequence[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        sys.exit(f"{PAGE} write failed: the marks for the tables are missing")
    PAGE.write_text("\n".join((f"{before}{BEGIN}\n", *tables, f"{END}{after}")), encoding="utf-8")


if __name__ == "__main__":
    main()
