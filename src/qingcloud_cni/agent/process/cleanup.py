"""`qingagent cleanup`: the host as it was before the first start."""

import shutil
from collections.abc import Callable
from contextlib import suppress

from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.process.lock import take_lock
from qingcloud_cni.agent.process.main import Host, OpenAgent, opened
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.nics.model import Attachment
from qingcloud_cni.core.seams.kernel import ServicePath
from qingcloud_cni.store.damaged_files import state_files

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
    await _empty_containers(parts, force=force)
    parts.agent.pool.drain()
    told = ""
    while parts.agent.context.table.nics or not parts.agent.is_drained():
        text = _progress(parts)
        if text != told:
            say(text)
            told = text
        await parts.agent.context.clock.sleep(LOOK)
        await _empty_containers(parts, force=force)  # the comparison with the cloud may have found more
    await parts.kernel.serve(ServicePath())
    await parts.kernel.restore(parts.agent.context.table.settings)


async def _empty_containers(parts: OpenAgent, *, force: bool) -> None:
    """Take the NICs that containers have, with *force*; else AgentError if there are any."""
    held = tuple(parts.agent.context.table.attachments.values())
    if held and not force:
        names = ", ".join(_named(attachment) for attachment in held[:5]) + (" …" if len(held) > 5 else "")
        raise AgentError(f"containers still have NICs: {names}; remove them first, or take the NICs with --force")
    for attachment in held:
        await parts.agent.attachments.delete(attachment.key, CniCall(Verb.DEL))


def _named(attachment: Attachment) -> str:
    """The container, or where it is if nobody has told whose a NIC is that was found."""
    return f"{attachment.nic_id} in {attachment.netns.path}" if attachment.key.is_unclaimed else str(attachment.key)


def _remove_files(settings: Settings) -> None:
    """Only what the agent made; the directories go if nothing else is in them."""
    settled = settings.write_counter, settings.boot_time, settings.socket, settings.token_file
    drafts = settings.run_dir.glob(f".{settings.token_file.name}.*")  # of a start that was killed
    for path in (*state_files(settings.database), *settled, *drafts):
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
    if not agent.context.table.nics and agent.reconciler.expects_more:
        return "looking for NICs of an earlier life"
    return f"NICs left to give back: {len(agent.context.table.nics)}"
