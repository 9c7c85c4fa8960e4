"""ADD, DEL, CHECK and GC: moves NICs into containers and back."""

from contextlib import suppress
from dataclasses import replace

from qingcloud_cni.agent.attachments.announcements import Announcements
from qingcloud_cni.agent.attachments.spool_files import SpoolFile, SpoolFiles
from qingcloud_cni.agent.attachments.unclaimed import Unclaimed
from qingcloud_cni.agent.base.attachment_lock import AttachmentLock, CniCall
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.phases import Phase, Phases
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.core import errors
from qingcloud_cni.core.cni.check import mismatches
from qingcloud_cni.core.cni.network_config import NetworkConfig, unlisted_attachments
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.cni.results import Result, result_of
from qingcloud_cni.core.cni.routes import routes_for
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Event, Netns, Nic, Route
from qingcloud_cni.core.seams.kernel import LinkOrder, PlacedLink, Survey

TRIES = 3  # NICs tried if the link of the assigned one turns out to be missing or soiled


class Attachments:
    """Serves the verbs on attachments; requests for the same one wait for each other."""

    def __init__(self, context: Context, pool: Pool, gateways: Gateways, spool: SpoolFiles) -> None:
        self._context = context
        self._spool = spool
        self._pool = pool
        self._gateways = gateways
        self.lock = AttachmentLock()
        self._unclaimed = Unclaimed(context)
        self._announcements = Announcements(context)

    async def add(
        self, key: AttachmentKey, netns_path: str, config: NetworkConfig, call: CniCall
    ) -> tuple[Attachment, Nic]:
        """Attach a NIC to the container. A repeated ADD gets the first answer.

        If the call is cancelled, the ADD is undone: the DEL that follows a failed ADD may have been served already.
        Raises InvalidNetns, InvalidConfig, PoolEmpty, Draining, Unavailable, KernelRefused; then nothing is left
        behind.
        """
        async with self.lock.hold(key, call):  # from the first moment, so that a later DEL waits for it
            with call.phases.waiting(Phase.KERNEL):
                netns = await self._context.kernel.identify(netns_path)
            call.check()
            if file := self._spool.find(key):
                await self._finish(file, call.phases)
            is_recognised = await self._unclaimed.recognise(key, netns_path, call, config)
            if known := await self._known(key, netns, call):
                if is_recognised:
                    with call.phases.waiting(Phase.STORE):
                        await self._context.journal.record()
                return known, self._context.table.nics[known.nic_id]
            self._context.journal.check()
            pod = config.workload.pod
            begun = self._context.now() - call.phases.total
            self._context.table.note(Event(begun, "attachment.requested", "", str(key), netns_path, pod=pod))
            try:
                attachment, nic = await self._try_attach(key, netns, config, call)
            except errors.AgentError as err:
                self._context.note_and_push("attachment.refused", subject=str(key), detail=str(err), pod=pod)
                raise
            try:
                call.check()
            except errors.Unavailable as err:
                await self._release(attachment, str(err), call.phases)
                raise
            return attachment, nic

    async def delete(self, key: AttachmentKey, call: CniCall, netns_path: str = "") -> None:
        """Release the container's NIC; success if it has none.

        *netns_path* may lead to a NIC that a new table does not know. ADDs of the attachment that wait are cancelled.

        Unavailable if another request for it does not end in time, or if the caller has gone: it has spooled the DEL
        or will repeat it, and an ADD may have come since.
        """
        call.check()
        self.lock.call_off_adds(key, "a DEL of the same attachment came meanwhile")
        async with self.lock.hold(key, call):
            call.check()
            if key not in self._context.table.attachments and netns_path:
                await self._unclaimed.end(key, netns_path, call)
            attachment = self._context.table.attachments.get(key)
            if attachment is not None:
                await self._release(attachment, "DEL", call.phases)

    async def finish(self, file: SpoolFile) -> bool:
        """Carry out a spooled DEL; False if a request for its attachment is being served.

        KernelRefused as `delete`; the file stays then.
        """
        if file.spooled.key in self.lock:
            return False
        call = CniCall(Verb.DEL)
        async with self.lock.hold(file.spooled.key, call):
            if self._spool.is_there(file):  # else an ADD has carried it out meanwhile
                await self._finish(file, call.phases)
        return True

    async def check(self, key: AttachmentKey, netns_path: str, previous: Result, call: CniCall) -> None:
        """Compare the attachment with the kernel and *previous*, the result of its ADD; CheckFailed names the faults.

        Raises InvalidNetns, KernelRefused; Unavailable as `delete`.
        """
        async with self.lock.hold(key, call):
            await self._unclaimed.recognise(key, netns_path, call)
            attachment = self._context.table.attachments.get(key)
            record = None
            if attachment is not None:
                record = self._context.identity.record_of(self._context.table.nics[attachment.nic_id])
            with call.phases.waiting(Phase.KERNEL):
                seen = await self._context.kernel.inspect(netns_path, key.ifname, record)
            attachment = self._context.table.attachments.get(key)
            nic = self._context.table.nics[attachment.nic_id] if attachment is not None else None
            if found := mismatches(attachment, nic, seen, previous, key.ifname):
                raise errors.CheckFailed(f"attachment {key}: {'; '.join(found)}")

    async def differences(self, nic: Nic) -> tuple[str, ...]:
        """How a NIC differs from the state in which the cloud plugged it in; InvalidNetns, KernelRefused."""
        attachment = self._context.table.attachment_of(nic.nic_id)
        found = (nic.soil,) if nic.soil else ()
        if attachment is None:
            return found
        path, ifname, record = attachment.netns.path, attachment.key.ifname, self._context.identity.record_of(nic)
        return found + (await self._context.kernel.inspect(path, ifname, record)).differences

    async def collect(self, network: str, valid: frozenset[AttachmentKey], call: CniCall) -> None:
        """Release attachments of *network* that are not in *valid* and whose namespace is gone.

        One with a living namespace stays, for the list may be another runtime's; so does one that a request is served
        for. At the end KernelRefused names what could not be released; Unavailable if time ran out.
        """
        failures: list[str] = []
        left = [*unlisted_attachments(self._context.table.attachments.values(), network, valid)]
        for n, attachment in enumerate(left):
            if not call.left:
                rest = f"{len(left) - n} of {len(left)} unlisted attachments not checked within {call.seconds:.0f} s"
                raise errors.Unavailable(f"GC of {network}: " + "; ".join((rest, *failures)))
            if attachment.key not in self.lock:
                try:
                    await self._collect(attachment.key, call)
                except errors.KernelRefused as err:
                    failures.append(f"{attachment.key}: {err}")
        if failures:
            raise errors.KernelRefused(
                f"GC of {network}: {len(failures)} of {len(left)} unlisted attachments not released: "
                + "; ".join(failures)
            )

    def ended(self) -> tuple[Attachment, ...]:
        """Return attachments of NICs that the table did not know at the DEL of their container."""
        return self._unclaimed.ended()

    async def release_left(self, attachment: Attachment, cause: str) -> None:
        """Release an attachment whose container is gone, unless a request for it is being served."""
        if attachment.key in self.lock:
            return
        call = CniCall(Verb.DEL)
        async with self.lock.hold(attachment.key, call):
            if self._context.table.attachments.get(attachment.key) is not attachment:
                return
            try:
                await self._release(attachment, cause, call.phases)
            except errors.KernelRefused as err:
                self._context.note_and_push("attachment.not-undone", attachment.nic_id, str(attachment.key), str(err))

    async def settle_unfinished(self) -> None:
        """After a restart: attachments that are not ready on disk stay if their link is in a container.

        Their ADD may have been answered, whatever the container has done to its link since. If it was not, a DEL or
        another ADD follows. The others were not answered and are released; if the kernel refuses, the next comparison
        of the links does it, or the next ADD or DEL of the container.
        """
        context = self._context
        unfinished = [a for a in context.table.attachments.values() if not a.is_ready]
        survey = await context.kernel.survey() if unfinished else Survey((), ())
        on_host = {link.claimed_id for link in (*survey.host, *survey.parked) if link.fingerprint}
        for attachment in unfinished:
            nic_id = attachment.nic_id
            try:
                record = context.identity.record_of(context.table.nics[nic_id])
                if nic_id not in on_host and await context.kernel.search([record]):
                    context.table.configured(await self._as_found(attachment), context.now())
                else:
                    await self._release(attachment, "its ADD was cut off", Phases())
            except errors.KernelRefused as err:
                context.note("attachment.not-undone", nic_id, str(attachment.key), str(err))
        context.journal.push()

    async def _as_found(self, attachment: Attachment) -> Attachment:
        """With index and MTU of its link, if that still has its name."""
        try:
            seen = await self._context.kernel.inspect(attachment.netns.path, attachment.key.ifname)
        except errors.InvalidNetns:
            return attachment
        record = self._context.identity.record_of(self._context.table.nics[attachment.nic_id])
        if seen.link is None or not record.matches(seen.link):
            return attachment
        return replace(attachment, ifindex=seen.link.ifindex, mtu=seen.link.mtu)

    async def _finish(self, file: SpoolFile, phases: Phases) -> None:
        """Carry out a spooled DEL, unless an ADD came later; remove its file once the release is on disk."""
        context, spooled = self._context, file.spooled
        attachment = context.table.attachments.get(spooled.key)
        outcome = "it had no NIC"
        if attachment is not None and not spooled.is_after(context.clock.boot, attachment.uptime):
            outcome = f"nic {attachment.nic_id} stays: its ADD came later"
        elif attachment is not None:
            await self._release(attachment, "a spooled DEL", phases)
            outcome = f"nic {attachment.nic_id} was released"
        with phases.waiting(Phase.STORE):
            await context.journal.record()
        context.note_and_push("spool.done", subject=str(spooled.key), detail=outcome)
        try:
            self._spool.remove(file)
        except errors.Unavailable as err:  # next time the DEL will find nothing to release
            context.note("spool.failed", subject=str(spooled.key), detail=str(err))

    async def _collect(self, key: AttachmentKey, call: CniCall) -> None:
        context = self._context
        async with self.lock.hold(key, call):
            attachment = context.table.attachments.get(key)
            if attachment is None:
                return
            record = context.identity.record_of(context.table.nics[attachment.nic_id])
            with call.phases.waiting(Phase.KERNEL):
                is_gone = await context.kernel.is_gone(record, attachment.netns)
            if context.table.attachments.get(key) is not attachment:  # its link was seen back on the host meanwhile
                return
            if is_gone:
                await self._release(attachment, "GC: not listed, and its namespace is gone", call.phases)
            else:
                detail = f"a GC did not list it, and its namespace {attachment.netns.path} lives"
                context.note_and_push("attachment.kept", attachment.nic_id, str(key), detail)

    async def _known(self, key: AttachmentKey, netns: Netns, call: CniCall) -> Attachment | None:
        """The attachment of an earlier ADD, if its link is as that one left it; any other is released."""
        attachments = self._context.table.attachments
        if key not in attachments:
            return None
        with call.phases.waiting(Phase.KERNEL):
            seen = await self._context.kernel.inspect(netns.path, key.ifname)
        known = attachments.get(key)
        if known is None:  # its link was seen back on the host meanwhile
            return None
        found = replace(known, netns=netns) if known.netns.is_same(netns) else known  # whatever its path is now
        nic = self._context.table.nics[known.nic_id]
        if not mismatches(found, nic, seen, result_of(found, nic), key.ifname):
            return found
        await self._release(known, "a repeated ADD found its link changed", call.phases)
        return None

    async def _try_attach(
        self, key: AttachmentKey, netns: Netns, config: NetworkConfig, call: CniCall
    ) -> tuple[Attachment, Nic]:
        for _ in range(TRIES - 1):
            with suppress(errors.LinkNotFound, errors.NicSoiled):
                return await self._attach(key, netns, config, call)
        return await self._attach(key, netns, config, call)

    async def _attach(
        self, key: AttachmentKey, netns: Netns, config: NetworkConfig, call: CniCall
    ) -> tuple[Attachment, Nic]:
        context, table = self._context, self._context.table
        wanted = Attachment(
            key, "", netns, context.now(), dns=config.dns, services=config.services, ip_masq=config.ip_masq,
            workload=config.workload, uptime=context.clock.uptime(), is_compared=not context.kernel.lacks,
        )  # fmt: skip
        with call.phases.waiting(Phase.QUEUE):
            move = await self._pool.take(wanted, config.request, call)
        with move:
            attachment, nic, is_on_disk = await self._configure(table.attachments[key], config, call)
        if not is_on_disk:
            await self._record(key, call.phases)
        return attachment, nic

    async def _configure(
        self, attachment: Attachment, config: NetworkConfig, call: CniCall
    ) -> tuple[Attachment, Nic, bool]:
        """Move the assigned NIC into the container; whether all that is answered is on disk already."""
        context, table, key = self._context, self._context.table, attachment.key
        nic = table.nics[attachment.nic_id]
        try:
            gateway = ""
            if config.services:
                with call.phases.waiting(Phase.CLOUD), call.waiting():
                    gateway = await self._gateways.address_for(nic, config, call.left)
                context.note("attachment.routed", nic.nic_id, str(key), gateway, pod=config.workload.pod)
            routes = routes_for(nic, config.routes, gateway)
            attachment = replace(attachment, routes=routes)
            table.routed(attachment)
            if config.services:
                with call.phases.waiting(Phase.KERNEL):
                    await self._gateways.prepare()
            with call.phases.waiting(Phase.STORE):
                await context.journal.record()
            with call.phases.waiting(Phase.KERNEL):
                placed = await self._attach_link(attachment, nic, routes)
            table.identified(nic.nic_id, placed.arrival.fingerprint, placed.arrival.plugged)
            attachment = replace(attachment, routes=placed.routes, ifindex=placed.ifindex, mtu=placed.mtu)
            table.configured(attachment, context.now(), call.phases.summary())
            if config.ip_masq and not config.services:  # only flows from other hosts wait for it
                context.signals.path_due.notify()
            return table.attachments[key], nic, placed.routes == routes  # the kernel shows all else after a crash
        except (errors.InvalidConfig, errors.InvalidNetns, errors.Unavailable) as err:  # the address was not used
            table.returned_unused(key, context.now(), str(err))
            raise
        except errors.LinkNotFound as err:
            table.released(key, context.now(), is_parked=False, cause=str(err))
            raise
        except errors.NicSoiled as err:
            table.soiled(nic.nic_id, context.now(), str(err))
            table.returned_unused(key, context.now(), str(err))
            raise
        except errors.KernelRefused as err:
            table.released(key, context.now(), is_parked=True, cause=str(err))
            raise
        finally:
            context.journal.push()
            self._context.signals.plan_due.notify()

    async def _record(self, key: AttachmentKey, phases: Phases) -> None:
        """Write the attachment before the answer; release it if the disk refuses, as a restart would."""
        try:
            with phases.waiting(Phase.STORE):
                await self._context.journal.record()
        except errors.StoreRefused as err:
            if attachment := self._context.table.attachments.get(key):
                await self._release(attachment, str(err), phases)
            raise

    async def _attach_link(self, attachment: Attachment, nic: Nic, routes: tuple[Route, ...]) -> PlacedLink:
        record = self._context.identity.record_of(nic)
        order = LinkOrder(record, attachment.netns, attachment.key.ifname, nic.address, routes)
        placed = await self._context.kernel.attach(order)
        self._announcements.begin(order, placed.ifindex)
        return placed

    async def _release(self, attachment: Attachment, cause: str, phases: Phases) -> None:
        """Park the link and let the NIC cool down; a link that is nowhere yet is expected on the host."""
        context, nic_id = self._context, attachment.nic_id
        with context.moves.of(nic_id):
            self._announcements.stop(nic_id)
            with phases.waiting(Phase.KERNEL):
                record = context.identity.record_of(context.table.nics[nic_id])
                detached = await context.kernel.detach(record, attachment.netns, attachment.ifindex)
                await self._announcements.ended(nic_id)
            for spoof in detached.spoofs:
                context.note("nic.spoofed", nic_id, str(attachment.key), spoof)
            if detached.arrival is not None:
                context.table.identified(nic_id, detached.arrival.fingerprint, detached.arrival.plugged)
            context.table.released(attachment.key, context.now(), is_parked=detached.is_parked, cause=cause)
        # The container may go even if the disk refuses: after a crash the kernel shows where the link is.
        with phases.waiting(Phase.STORE), suppress(errors.StoreRefused):
            await context.journal.record()
        self._context.signals.plan_due.notify()  # only now: planning takes as long as the write, and would delay it
