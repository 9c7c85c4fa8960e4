"""A month of containers that come and go: what is on disk, and in memory, stays as small as it was."""

import random
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, netns_of, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent import agent, gateways
from qingcloud_cni.agent.attachments import spool
from qingcloud_cni.agent.base import files_watch
from qingcloud_cni.agent.pool import pool
from qingcloud_cni.core.nics.changes import EVENT_LIMIT
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.store import database
from qingcloud_cni.store.database import EVENTS_TRIMMED

DAYS = 30
PER_DAY = 100  # containers
LARGEST = 12 * 2**20  # bytes of the state file and all beside it


def size_on_disk(host: SimulatedHost) -> int:
    return sum(path.stat().st_size for path in host.settings.state_dir.glob("agent.db*"))


@pytest.mark.timeout(600)  # the machine may be busy
@in_virtual_time
async def test_a_month_of_churn_leaves_the_state_file_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = tuple(p.replace("synchronous=FULL", "synchronous=OFF") for p in database._PRAGMAS)
    monkeypatch.setattr(database, "_PRAGMAS", hasty)  # the host has no power cut
    for module in (spool, pool, files_watch):
        monkeypatch.setattr(module, "PERIOD", 300.0)  # the kernel reports every change
    monkeypatch.setattr(gateways, "CHECK_PERIOD", 300.0)
    monkeypatch.setattr(agent, "SURVEY_PERIOD", 300.0)
    async with simulated(tmp_path, max_nics=30) as host:
        rng = random.Random(1)
        alive: list[str] = []
        sizes: list[int] = []
        for day in range(DAYS):
            for _ in range(PER_DAY):
                name = f"{rng.getrandbits(256):064x}"
                await host.add(name)
                alive.append(name)
                if len(alive) > 10:
                    gone = alive.pop(rng.randrange(len(alive)))
                    if rng.random() < 0.9:
                        await host.delete(gone)
                    host.kernel.kill_netns(netns_of(gone))
                await host.clock.sleep(86_400 / PER_DAY * rng.uniform(0.1, 1.9))
            await host.journal.upkeep()  # it comes every hour; between, the log beside the file grows
            sizes.append(size_on_disk(host))
            if day == DAYS // 2:
                await host.kill()
                await host.start()
        assert max(sizes) < LARGEST
        # By the eighteenth day as many events have come as are kept: from then on old ones go.
        assert max(sizes[-5:]) < 1.1 * max(sizes[18:23]), "it still grows"
        journal = host.journal
        kept = await journal.events(EventFilter(1_000_000))
        assert EVENT_LIMIT <= len(kept) <= EVENT_LIMIT + EVENTS_TRIMMED
        assert kept[-1].seq - kept[0].seq == len(kept) - 1
        on_disk = host.store.on_disk()
        assert len(on_disk.attachments) == len(alive) <= 11
        assert len(on_disk.nics) <= 20
        assert not on_disk.intents
        assert journal.unsaved == 0
        host.check_invariants()
