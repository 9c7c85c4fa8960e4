"""`qingagent cleanup`: the host as it was before the first start."""

import shutil
from collections.abc import Callable
from contextlib import suppress

from qingcloud_cni.agent.lock import take_lock
from qingcloud_cni.agent.main import Host, OpenAgent, opened
from qingcloud_cni.agent.settings import Settings
from qingcloud_cni.agent.turns import Call
from qingcloud_cni.core.cni import Verb
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.model import Netns, NicState
from qingcloud_cni.core.names import link_alias
from qingcloud_cni.core.seams import ServicePath

LOOK = 0.5  # seconds between looks at what is left


async def clean_up(host: Host, *, force: bool, say: Callable[[str], object]) -> None:
    """Give back every NIC of ours, then remove parking namespace, run and state files.

    AgentError, and nothing removed, while containers have NICs and *force* is not given; AlreadyRunning while the
    agent runs. Waits as long as the cloud does not answer.
    """
    with take_lock():
        async with opened(host) as parts:
            await _give_back(parts, force=force, say=say)
            await parts.kernel.remove()
        _remove_files(host.settings)
    say("removed: NICs, parking namespace, run and state files")


async def _give_back(parts: OpenAgent, *, force: bool, say: Callable[[str], object]) -> None:
    held = tuple(parts.agent.context.table.attachments)
    if held and not force:
        names = ", ".join(str(key) for key in held[:5]) + (" …" if len(held) > 5 else "")
        raise AgentError(f"containers still have NICs: {names}; remove them first, or take the NICs with --force")
    parts.agent.pool.drain()
    for key in held:
        await parts.agent.attachments.delete(key, Call(Verb.DEL))
    told = ""
    while parts.agent.context.table.nics or not parts.agent.is_drained():
        text = _progress(parts)
        if text != told:
            say(text)
            told = text
        await parts.agent.context.clock.sleep(LOOK)
        await _fetch_strays(parts, force=force)
    await parts.kernel.serve(ServicePath())
    await parts.kernel.restore(parts.agent.context.table.settings)


async def _fetch_strays(parts: OpenAgent, *, force: bool) -> None:
    """NICs of containers that the table does not know: left alone, or with *force* taken from them."""
    agent, context = parts.agent, parts.agent.context
    strays = [n for n in context.table.in_state(NicState.MISSING) if n.nic_id not in agent.pool.nowhere]
    if not agent.is_cloud_compared or len(strays) < len(context.table.nics):
        return
    for nic in strays:
        alias = link_alias(context.instance_id, nic.nic_id)
        where = await context.kernel.whereabouts(nic.nic_id, alias)
        if where and not force:
            raise AgentError(
                f"NIC {nic.nic_id} is in {where}, in use by a container that the agent does not know;"
                " remove the container first, or take its NIC with --force"
            )
        await context.kernel.detach(nic.nic_id, Netns("", 0, 0), 0, alias)
    if strays:
        await agent.links.look()


def _remove_files(settings: Settings) -> None:
    """Only what the agent made; the directories go if nothing else is in them."""
    database = settings.database
    for path in (database, database.with_name(f"{database.name}-wal"), settings.socket, settings.token_file):
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(settings.spool)
    for directory in (settings.state_dir, settings.run_dir):
        with suppress(OSError):
            directory.rmdir()


def _progress(parts: OpenAgent) -> str:
    agent = parts.agent
    if trouble := agent.context.journal.trouble:
        return f"waiting for the disk: {trouble}"
    if not agent.is_cloud_compared:
        error = agent.last_cloud_error
        return f"waiting for the cloud: {error}" if error else "comparing with the cloud"
    return f"NICs left to give back: {len(agent.context.table.nics)}"
