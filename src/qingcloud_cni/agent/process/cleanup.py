"""`qingagent cleanup`: the host as it was before the first start."""

import shutil
from collections.abc import Callable
from contextlib import suppress

from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.process.lock import agent_lock
from qingcloud_cni.agent.process.main import Host, OpenAgent, opened, with_instance_id
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.nics.model import Attachment
from qingcloud_cni.core.seams.kernel import ServicePath
from qingcloud_cni.store.damaged_files import state_files

POLL = 0.5  # seconds between checks of what is left


async def clean_up(host: Host, *, force: bool, report: Callable[[str], object]) -> None:
    """Release every NIC of ours, then remove the parking namespace, run and state files.

    AgentError, with nothing removed, if containers have NICs and *force* is False; AlreadyRunning if the agent runs.
    Waits until the cloud answers.
    """
    with agent_lock():
        async with opened(await with_instance_id(host)) as parts:
            await _release(parts, force=force, report=report)
            await parts.kernel.remove()
        _remove_files(host.settings)
    report("removed: NICs, parking namespace, run and state files")


async def _release(parts: OpenAgent, *, force: bool, report: Callable[[str], object]) -> None:
    await _empty_containers(parts, force=force)
    parts.agent.pool.drain()
    last = ""
    while parts.agent.context.table.nics or not parts.agent.is_drained():
        text = _progress(parts)
        if text != last:
            report(text)
            last = text
        await parts.agent.context.clock.sleep(POLL)
        await _empty_containers(parts, force=force)  # the comparison with the cloud may find more
    await parts.kernel.serve(ServicePath())
    await parts.kernel.restore(parts.agent.context.table.settings)


async def _empty_containers(parts: OpenAgent, *, force: bool) -> None:
    """With *force* take the NICs from containers; without it AgentError if containers have any."""
    held = tuple(parts.agent.context.table.attachments.values())
    if held and not force:
        names = ", ".join(_named(attachment) for attachment in held[:5]) + (" …" if len(held) > 5 else "")
        raise AgentError(f"cleanup: containers have NICs: {names}; remove them, or use --force")
    for attachment in held:
        await parts.agent.attachments.delete(attachment.key, CniCall(Verb.DEL))


def _named(attachment: Attachment) -> str:
    """The container; its namespace if no request has claimed it yet."""
    return f"{attachment.nic_id} in {attachment.netns.path}" if attachment.key.is_unclaimed else str(attachment.key)


def _remove_files(settings: Settings) -> None:
    """Only what the agent created; the directories if they are empty then."""
    settled = (
        settings.write_counter,
        settings.boot_time,
        settings.found_instance,
        settings.socket,
        settings.token_file,
    )
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
    if error := agent.context.journal.error:
        return f"waiting for the disk: {error}"
    if not agent.is_cloud_compared:
        cause = agent.last_cloud_error
        return f"waiting for the cloud: {cause}" if cause else "comparing with the cloud"
    if not agent.context.table.nics and agent.reconciler.expects_more:
        return "waiting for NICs of earlier runs"
    return f"NICs left to release: {len(agent.context.table.nics)}"
