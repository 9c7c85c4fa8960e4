"""The command `qingagent orphans`."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import click

from qingcloud_cni.agent.orphans.orphan_finder import Deleted, Found, OrphanFinder, orphan_finder
from qingcloud_cni.agent.settings.resolution import read_instance_id
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cli import show
from qingcloud_cni.cli.options import CloudConfig
from qingcloud_cni.core.drift.orphans import LeftAlone, Orphan, free_since
from qingcloud_cni.core.errors import AgentError, StartRefused

LISTED = 3  # instances named in the question


def run(config: CloudConfig, *, older_than: float, delete: bool, is_agreed: bool, as_json: bool) -> None:
    """Show the orphans of the zone and with *delete* delete them; AgentError if that fails for one."""
    if is_agreed and not delete:
        raise StartRefused("--yes needs --delete")
    if delete and not is_agreed and not sys.stdin.isatty():
        raise StartRefused("--delete asks for confirmation, but stdin is not a terminal; add --yes")
    settings = config.resolved.settings

    def opened() -> AbstractAsyncContextManager[OrphanFinder]:
        own = _own_instance(settings)
        return orphan_finder(settings, config.access, own_instance=own, older_than=older_than)

    found = asyncio.run(_find(opened()))
    if not as_json:
        _show(found)
    ends: list[Deleted] = []
    try:
        if delete and found.orphans and (is_agreed or _is_agreed(found.orphans)):
            asyncio.run(_delete(opened(), found.orphans, ends, is_quiet=as_json))
    finally:
        if as_json:
            show.as_json(_document(found, ends))
    if failed := [end for end in ends if end.error]:
        raise AgentError(f"{len(failed)} of {len(ends)} NICs: delete failed")


def _own_instance(settings: Settings) -> str:
    """The instance of this host; "" if the command runs elsewhere."""
    is_known = settings.instance_id or settings.instance_id_file.exists()
    return read_instance_id(settings) if is_known else ""


async def _find(opened: AbstractAsyncContextManager[OrphanFinder]) -> Found:
    async with opened as finder:
        return await finder.find()


async def _delete(
    opened: AbstractAsyncContextManager[OrphanFinder],
    doomed: Sequence[Orphan],
    ends: list[Deleted],
    *,
    is_quiet: bool,
) -> None:
    def report(end: Deleted) -> None:
        ends.append(end)
        if not is_quiet:
            nic_id = end.orphan.nic.nic_id
            show.say(f"not deleted: {nic_id}: {end.error}" if end.error else f"deleted: {nic_id}")

    async with opened as finder:
        await finder.delete(doomed, report)


def _is_agreed(orphans: Sequence[Orphan]) -> bool:
    instances = sorted({orphan.instance_id for orphan in orphans})
    more = len(instances) - LISTED
    named = ", ".join(instances[:LISTED]) + (f" and {more} more" if more > 0 else "")
    return click.confirm(f"Delete {len(orphans)} NICs of {named}?", err=True)


# --- in words and as JSON ----------------------------------------------------------------------------


def _show(found: Found) -> None:
    rows = [
        {
            "nic": orphan.nic.nic_id,
            "address": orphan.nic.private_ip,
            "vxnet": orphan.nic.vxnet_id,
            "instance": orphan.instance_id,
            "is": orphan.instance_is,
            "free": show.age(since) if (since := free_since(orphan.nic)) else "?",
            "name": orphan.nic.name,
        }
        for orphan in found.orphans
    ]
    columns = {"NIC": "nic", "ADDRESS": "address", "VXNET": "vxnet", "INSTANCE": "instance", "WHICH IS": "is",
               "FREE FOR": "free", "NAME": "name"}  # fmt: skip
    show.as_table(rows, columns, "no orphans")
    for spared in found.left_alone:
        show.say(f"left alone: {spared.nic.nic_id} of {spared.instance_id}, which is gone: {spared.why}")


def _document(found: Found, ends: Sequence[Deleted]) -> dict[str, Any]:
    by_nic = {end.orphan.nic.nic_id: end for end in ends}
    return {
        "orphans": [_orphan(orphan, by_nic.get(orphan.nic.nic_id)) for orphan in found.orphans],
        "left_alone": [{**_nic(spared), "why": spared.why} for spared in found.left_alone],
    }


def _orphan(orphan: Orphan, end: Deleted | None) -> dict[str, Any]:
    outcome = {} if end is None else {"is_deleted": not end.error, "error": end.error}
    return {**_nic(orphan), "instance_is": orphan.instance_is, **outcome}


def _nic(found: Orphan | LeftAlone) -> dict[str, Any]:
    nic = found.nic
    return {
        "nic_id": nic.nic_id,
        "name": nic.name,
        "instance_id": found.instance_id,
        "vxnet_id": nic.vxnet_id,
        "private_ip": nic.private_ip,
        "free_since": free_since(nic),
    }
