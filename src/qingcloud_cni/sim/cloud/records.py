"""What a simulator writes down so that another one, started later, can go on as the same cloud."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.sim.cloud.addresses import BookRecord
from qingcloud_cni.sim.cloud.faults import Tally
from qingcloud_cni.sim.cloud.state import JobRecord, LateLink, NicRecord
from qingcloud_cni.sim.fabric.remains import read_record, replace_file
from qingcloud_cni.sim.topology.topology import FaultSpec, Topology

FORM = 3  # of what is written; another number is not understood
PAST_JOBS = 200  # jobs that are over and still told of

_CLOUD = "cloud.json"  # beside the record of what was made


class Hour(msgspec.Struct, frozen=True):
    """What an access key has used of its quota of calls."""

    began: float
    calls: int


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cloud at one moment; what can be computed from the rest is left out."""

    topology: Topology
    began: float  # when the cloud began
    nics: tuple[NicRecord, ...]
    hosts: dict[str, tuple[str, str]]  # status and transition by instance id
    jobs: tuple[JobRecord, ...]
    books: dict[str, BookRecord]  # by vxnet id
    late_links: tuple[LateLink, ...]
    exhausted: dict[str, float | None]  # until when, by vxnet id; None: until a create there succeeds
    calls: dict[str, int]
    hours: dict[str, Hour]  # by access key
    faults: tuple[FaultSpec, ...]
    faults_since: float
    tallies: tuple[Tally, ...]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    form: int = FORM
    sim: str
    runs: int  # simulators that kept this cloud before the one that wrote this
    records: Records


def worth_keeping(jobs: Mapping[str, JobRecord]) -> Iterable[JobRecord]:
    """All jobs under way and the latest of those that are over, in their order."""
    over = [job.job_id for job in jobs.values() if job.end]
    forgotten = set(islice(over, max(len(over) - PAST_JOBS, 0)))
    return (job for job in jobs.values() if job.job_id not in forgotten)


class Keeper:
    """Writes the records of one run into its state directory, whenever they have changed."""

    def __init__(self, state_dir: Path, sim: str, runs: int) -> None:
        self._path = state_dir / _CLOUD
        self._sim = sim
        self._runs = runs
        self._written = b""

    def save(self, records: Records) -> None:
        content = msgspec.json.encode(Kept(sim=self._sim, runs=self._runs, records=records))
        if content == self._written:
            return
        replace_file(self._path, content)
        self._written = content


def read_kept(state_dir: Path, sim: str) -> Kept | None:
    """What a simulator of this name kept in *state_dir*, if there is any; StartRefused where it cannot be read."""
    if not read_record(state_dir, sim):
        return None
    path = state_dir / _CLOUD
    way_out = f"`qingcloud-sim down --name {sim} --state-dir {state_dir}` removes it"
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise StartRefused(f"{path}: {err.strerror}") from err
    except (msgspec.DecodeError, ValueError) as err:
        raise StartRefused(f"{path} is damaged ({err}): {way_out}") from err
    if kept.form != FORM or kept.sim != sim:
        raise StartRefused(f"{path} was written by another version of qingcloud-sim: {way_out}")
    return kept
