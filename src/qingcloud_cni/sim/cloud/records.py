"""The records that a simulator saves, from which a later one continues as the same cloud."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import islice
from math import inf
from pathlib import Path

import msgspec

from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.sim.cloud.addresses import AddressPoolRecord
from qingcloud_cni.sim.cloud.faults import Tally
from qingcloud_cni.sim.cloud.state import CloudState, JobRecord, LateLink, NicRecord, build
from qingcloud_cni.sim.fabric.leftovers import read_record, replace_file
from qingcloud_cni.sim.topology import FaultSpec, Topology

FORM = 3  # version of the file
ENDED_JOBS = 200  # jobs that are over and still told of

_CLOUD = "cloud.json"  # beside the record of what was made


class Hour(msgspec.Struct, frozen=True):
    """The calls of an access key in its current hour."""

    began: float
    calls: int


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cloud at one moment, without what follows from the rest."""

    topology: Topology
    began: float  # when the cloud began
    nics: tuple[NicRecord, ...]
    hosts: dict[str, tuple[str, str]]  # status and transition by instance id
    jobs: tuple[JobRecord, ...]
    books: dict[str, AddressPoolRecord]  # by vxnet id
    late_links: tuple[LateLink, ...]
    exhausted: dict[str, float | None]  # end by vxnet id; None: when a create there succeeds
    calls: dict[str, int]
    hours: dict[str, Hour]  # by access key
    faults: tuple[FaultSpec, ...]
    faults_since: float
    tallies: tuple[Tally, ...]


class SavedCloud(msgspec.Struct, frozen=True, kw_only=True):
    """The content of cloud.json."""

    form: int = FORM
    sim: str
    runs: int  # earlier simulators of this cloud
    records: Records


def jobs_to_save(jobs: Mapping[str, JobRecord]) -> Iterable[JobRecord]:
    """All open jobs and the latest ended ones, in their order."""
    ended = [job.job_id for job in jobs.values() if job.end]
    dropped = set(islice(ended, max(len(ended) - ENDED_JOBS, 0)))
    return (job for job in jobs.values() if job.job_id not in dropped)


def restore(topology: Topology, rng: random.Random, now: Callable[[], float], records: Records) -> CloudState:
    """Build the cloud of *records*, whose routers, vxnets and hosts are those of *topology*."""
    state = build(topology, rng, now)
    for host in state.hosts.values():
        host.create_time = records.began
        host.status, host.transition = records.hosts[host.instance_id]
    for vxnet in state.vxnets.values():
        vxnet.create_time = records.began
        if vxnet.book:
            here = (nic for nic in records.nics if nic.vxnet_id == vxnet.vxnet_id and nic.private_ip)
            vxnet.book.restore(records.books[vxnet.vxnet_id], (IPv4Address(nic.private_ip) for nic in here))
    return replace(
        state,
        nics={nic.nic_id: nic for nic in records.nics},
        jobs={job.job_id: job for job in records.jobs},
        late_links=list(records.late_links),
        exhausted={vxnet: inf if until is None else until for vxnet, until in records.exhausted.items()},
    )


class CloudWriter:
    """Writes the records of one run into its state directory, whenever they have changed."""

    def __init__(self, state_dir: Path, sim: str, runs: int) -> None:
        self._path = state_dir / _CLOUD
        self._sim = sim
        self._runs = runs
        self._written = b""

    def save(self, records: Records) -> None:
        content = msgspec.json.encode(SavedCloud(sim=self._sim, runs=self._runs, records=records))
        if content == self._written:
            return
        replace_file(self._path, content)
        self._written = content


def read_saved_cloud(state_dir: Path, sim: str) -> SavedCloud | None:
    """The cloud that a simulator of this name saved in *state_dir*, if any; StartRefused if it cannot be read."""
    if not read_record(state_dir, sim):
        return None
    path = state_dir / _CLOUD
    way_out = f"`qingcloud-sim down --name {sim} --state-dir {state_dir}` removes it"
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=SavedCloud)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise StartRefused(f"{path}: read failed: {err.strerror}") from err
    except (msgspec.DecodeError, ValueError) as err:
        raise StartRefused(f"{path}: read failed: damaged ({err}); {way_out}") from err
    if saved.form != FORM or saved.sim != sim:
        raise StartRefused(f"{path}: read failed: written by another version of qingcloud-sim; {way_out}")
    return saved
