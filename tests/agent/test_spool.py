"""Spooled DELs: the agent does each once, at its start or later, and before an ADD of the attachment."""

import asyncio
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, on_host
from inprocess.spooled import keep
from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.cni.spool import file_name
from qingcloud_cni.core.errors import KernelRefused, Unavailable
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.seams.store import EventFilter


def spooled(host: SimulatedHost, container: str, asked: float | None = None, **said: object) -> Path:
    """Spool a DEL of this moment, or of *asked* seconds after the boot."""
    uptime = host.clock.uptime() if asked is None else asked
    return keep(host.settings.spool, key_of(container), uptime, host.clock.boot, **said)


def is_held(host: SimulatedHost, container: str) -> bool:
    return key_of(container) in host.table.attachments


async def events(host: SimulatedHost, name: str) -> list[Event]:
    return list(await host.journal.events(EventFilter(10_000, name=name)))


async def until_done(host: SimulatedHost, *paths: Path) -> None:
    await host.until(lambda: not any(path.exists() for path in paths), "spooled DELs done", seconds=30)


@on_host()
async def test_a_start_does_spooled_dels_before_it_serves(host: SimulatedHost) -> None:
    for name in ("c1", "c2", "stays"):
        await host.add(name)
    await host.kill()
    paths = [spooled(host, name) for name in ("c1", "c2", "never-there")]
    await host.start()  # ends as soon as requests could be served
    assert [is_held(host, name) for name in ("c1", "c2", "stays")] == [False, False, True]
    assert not any(path.exists() for path in paths)
    assert host.store.on_disk().attachments == tuple(host.table.attachments.values())
    host.check_invariants()


@on_host()
async def test_a_new_file_is_seen_within_seconds(host: SimulatedHost) -> None:
    await host.add("c1")
    path = spooled(host, "c1")
    begun = host.clock.now()
    await until_done(host, path)
    assert host.clock.now() - begun < 3
    assert not is_held(host, "c1")
    assert host.agent.spool.record.last_success >= begun
    assert [event.subject for event in await events(host, "spool.done")] == [str(key_of("c1"))]


@on_host(cooldown=0)
async def test_an_add_of_the_same_attachment_waits_for_it_and_keeps_its_own(host: SimulatedHost) -> None:
    first = await host.add("c1")
    path = spooled(host, "c1")
    await host.clock.sleep(0.01)
    second = await host.add("c1")  # the same namespace: without the DEL it would be the first answer again
    assert second.since > first.since
    assert second.nic_id != first.nic_id
    assert not path.exists()
    await host.clock.sleep(10)
    assert is_held(host, "c1")
    assert len(await events(host, "spool.done")) == 1


@on_host()
async def test_an_add_after_the_spooled_del_is_not_undone(host: SimulatedHost) -> None:
    before = host.clock.uptime()
    await host.clock.sleep(5)
    attachment = await host.add("c1")
    path = spooled(host, "c1", before)
    await until_done(host, path)
    assert host.table.attachments[key_of("c1")] == attachment
    (event,) = await events(host, "spool.done")
    assert "its ADD came later" in event.detail


@pytest.mark.parametrize("moment", ["before the kernel", "before the disk", "before the file is removed"])
@on_host()
async def test_a_spooled_del_that_is_cut_off_is_done_by_the_next_agent(host: SimulatedHost, moment: str) -> None:
    nic_id = (await host.add("c1")).nic_id
    path = spooled(host, "c1")
    copy = host.settings.state_dir / "copy"
    copy.hardlink_to(path)
    if moment == "before the kernel":
        await host.kernel.block("detach").reached()
    elif moment == "before the disk":
        host.disk.is_stuck, tries = True, host.disk.tries
        await host.until(lambda: host.disk.tries > tries, moment)
    else:
        await until_done(host, path)
    is_released = not host.store.on_disk().attachments
    await host.kill()
    copy.replace(path)
    host.disk.is_stuck = False
    assert is_released is (moment == "before the file is removed")
    await host.start()
    assert not path.exists()
    assert not is_held(host, "c1")
    released = [event for event in await events(host, "nic.released") if event.nic_id == nic_id]
    assert len(released) == 1
    host.check_invariants()


@on_host(cooldown=0)
async def test_a_spooled_del_that_an_add_has_done_is_not_repeated(host: SimulatedHost) -> None:
    """The task has read both files, and is busy with the first."""
    first, second = sorted(("c0", "c1"), key=lambda name: file_name(key_of(name)))
    for name in (first, second):
        await host.add(name)
    busy = host.kernel.delay("detach", 5.0, times=1)
    spooled(host, first)
    path = spooled(host, second)
    await busy.reached()
    await host.add(second)
    assert not path.exists()
    await host.clock.sleep(10)
    assert is_held(host, second)
    assert len(await events(host, "spool.done")) == 2


@on_host()
async def test_a_spooled_del_that_the_kernel_refuses_is_retried_and_delays_no_other(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    refused = host.kernel.fail("detach", KernelRefused(f"nic {nic_id}: no buffer space"), nic_id=nic_id)
    stuck = spooled(host, "c0")
    await host.add("c1")
    await until_done(host, spooled(host, "c1"))
    assert stuck.exists()
    assert host.agent.spool.waiting == 1
    assert "no buffer space" in host.agent.spool.record.last_error
    await host.kill()
    await host.start()  # it does not stop a start either
    await until_done(host, spooled(host, "c2"))
    assert stuck.exists()
    refused.end()
    await until_done(host, stuck)
    assert not is_held(host, "c0")
    await host.until(lambda: host.agent.spool.waiting == 0, "nothing left")


@on_host()
async def test_other_spooled_dels_are_done_while_an_add_of_the_attachment_is_served(host: SimulatedHost) -> None:
    """The DEL was asked before the end of that ADD, by a runtime that gave it up."""
    first, second = sorted(("c0", "c1"), key=lambda name: file_name(key_of(name)))  # as they are looked at
    await host.add(second)
    host.kernel.delay("attach", 20.0)
    adding = asyncio.create_task(host.add(first))
    await host.clock.sleep(1)
    mine, other = spooled(host, first), spooled(host, second)
    await until_done(host, other)
    assert mine.exists()
    assert not adding.done()
    await adding
    await until_done(host, mine)
    assert not is_held(host, first)


@on_host()
async def test_spool_files_of_another_agent_and_unreadable_ones_stay_and_are_reported(host: SimulatedHost) -> None:
    await host.add("c1")
    foreign = spooled(host, "c1", instanceID="i-other")
    broken = host.settings.spool / file_name(key_of("broken"))
    broken.touch(mode=0o600)
    await host.until(lambda: not broken.exists(), "the broken file set aside")
    await host.clock.sleep(30)
    assert is_held(host, "c1")
    assert foreign.exists()
    assert len([path for path in host.settings.spool.iterdir() if path.suffix == ".unreadable"]) == 1
    assert len(await events(host, "spool.left")) == len(await events(host, "spool.unreadable")) == 1
    await until_done(host, spooled(host, "c1", instanceID=host.instance_id))  # in its place
    assert not is_held(host, "c1")


@on_host()
async def test_a_start_works_with_a_spool_that_others_may_change_and_reports_it(host: SimulatedHost) -> None:
    await host.add("c1")
    path = spooled(host, "c1")
    host.settings.spool.chmod(0o777)
    await host.kill()
    await host.start()
    await host.until(lambda: host.agent.spool.record.failures > 1, "looked at again")
    assert "only root may change" in host.agent.spool.record.last_error
    assert is_held(host, "c1")
    host.settings.spool.chmod(0o700)
    await until_done(host, path)
    assert not is_held(host, "c1")


@on_host()
async def test_a_container_whose_namespace_is_gone_is_released_by_it_too(host: SimulatedHost) -> None:
    await host.add("c1")
    await host.kill()
    host.kernel.kill_netns(netns_of("c1"))
    path = spooled(host, "c1")
    await host.start()
    await until_done(host, path)
    await host.until(lambda: not is_held(host, "c1"), "released")
    host.check_invariants()


@on_host(max_nics=1, min_idle=1, max_idle=1, cooldown=0)
async def test_a_del_whose_caller_has_gone_is_not_begun(host: SimulatedHost) -> None:
    """It is spooled or repeated; later requests of the runtime must not suffer."""
    await host.add("c0")
    adding = asyncio.create_task(host.add("c1"))
    await host.clock.sleep(1)
    for name in ("c0", "c1"):
        with pytest.raises(Unavailable, match="the caller of its DEL has gone"):
            await host.agent.attachments.delete(key_of(name), CniCall(Verb.DEL, is_awaited=lambda: False))
    assert is_held(host, "c0")
    await host.delete("c0")
    await adding


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
@on_host()
async def test_a_clock_step_does_not_change_the_order_of_add_and_del(host: SimulatedHost, jump: float) -> None:
    await host.add("older")
    host.clock.wall_ahead = jump
    await host.clock.sleep(10)
    paths = spooled(host, "older"), spooled(host, "newer")
    await host.clock.sleep(0.01)
    await host.add("newer")
    await until_done(host, *paths)
    assert (is_held(host, "older"), is_held(host, "newer")) == (False, True)


@pytest.mark.parametrize("forward", [-7200.0, -30.0, 30.0, 7200.0])
@on_host()
async def test_a_clock_that_is_set_while_no_agent_runs_loses_no_del(host: SimulatedHost, forward: float) -> None:
    await host.add("c0")
    await host.clock.sleep(1.0)
    await host.kill()
    before = spooled(host, "c0")
    host.set_clock(forward)
    await host.start()
    await until_done(host, before)
    assert not is_held(host, "c0")
    await host.add("c1")
    await host.clock.sleep(1.0)
    await host.kill()
    host.set_clock(forward)
    after = spooled(host, "c1")
    await host.start()
    await until_done(host, after)
    assert not is_held(host, "c1")


@pytest.mark.parametrize("forward", [-30.0, 30.0])
@on_host()
async def test_an_add_after_the_spooled_del_is_not_undone_after_a_clock_step(
    host: SimulatedHost, forward: float
) -> None:
    asked = host.clock.uptime()
    await host.clock.sleep(1.0)
    await host.add("c0")
    await host.clock.sleep(1.0)
    await host.kill()
    late = spooled(host, "c0", asked)
    host.set_clock(forward)
    await host.start()
    await until_done(host, late)
    assert is_held(host, "c0")


@on_host()
async def test_a_clock_that_was_set_before_an_agent_that_died_loses_no_del_either(host: SimulatedHost) -> None:
    """The agent after that one no longer learns that it was set."""
    await host.add("c0")
    await host.clock.sleep(1.0)
    await host.kill()
    path = spooled(host, "c0")
    host.set_clock(7200.0)
    host.settings.spool.chmod(0o777)  # the agent reads no such spool
    await host.start()
    await host.kill()
    host.settings.spool.chmod(0o700)
    assert path.exists()
    await host.start()
    await until_done(host, path)
    assert not is_held(host, "c0")


@on_host()
async def test_a_del_of_an_earlier_boot_frees_nothing_of_this_one(host: SimulatedHost) -> None:
    """A spool on a disk outlives the boot, and counts its seconds from there."""
    await host.clock.sleep(3600.0)
    asked, boot = host.clock.uptime(), host.clock.boot
    await host.kill()
    host.kernel.reboot()
    host.clock.reboot()
    await host.start()
    await host.add("c0")
    path = keep(host.settings.spool, key_of("c0"), asked, boot)
    await until_done(host, path)
    assert is_held(host, "c0")
