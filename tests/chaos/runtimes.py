"""Container runtimes: each runs one container after another, with all requests that runtimes send."""

import random
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from chaos.promises import Promise, Promises
from chaos.record import Record
from chaos.watcher import check
from cni.answers import Answer, checked
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import run

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
GC_VERSION = "1.1.0"
LATER = 11  # the code of what may succeed when it is asked again
UNDONE = {8, 101}  # codes that an ADD may have only if its namespace was taken away, or its link
FAULTY = 104  # of a CHECK
ANSWER_SECONDS = 150  # in which every plugin has ended
DEL_SECONDS = 90  # in which a DEL, asked for again and again, has succeeded


class Plugins:
    """Runs the plugin in a process that can be killed."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], str] = {}

    def ask(self, verb: str, host: Host, name: str, conf: Mapping[str, Any]) -> Answer | None:
        """The answer, checked against the CNI specification; None if the plugin was killed."""
        begun = time.monotonic()
        netns = f"/run/netns/{name}" if name else ""
        process = host.begin(verb, name, conf=conf, output=subprocess.PIPE, CNI_NETNS=netns)
        with self._lock:
            self._running[process] = f"{verb} {name or host.name}"
        try:
            out, err = process.communicate(timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self._record.fail(f"{verb} {name}: no answer in {ANSWER_SECONDS} s", name)
            return None
        finally:
            with self._lock:
                del self._running[process]
        if process.returncode < 0:
            return None
        answer = Answer(process.returncode, out, time.monotonic() - begun, err.decode())
        try:
            checked(answer, verb, str(conf["cniVersion"]), "eth0", netns)
        except AssertionError as error:
            self._record.fail(f"{verb} {name}: an answer as none may be: {error}", name)
            return None
        self._tell(verb, name or host.name, answer)
        return answer

    def _tell(self, verb: str, name: str, answer: Answer) -> None:
        if answer.status == 0:
            self._record.took(verb, answer.seconds)
            kept = " (kept for the agent)" if answer.note else ""
            self._record.count(f"{verb} succeeded{kept}")
            self._record.note(f"{verb} {name}: {answer.seconds * 1000:.0f} ms{kept}")
        else:
            self._record.count(f"{verb} failed with {answer.code}")
            tell = self._record.note if answer.code == LATER else self._record.tell
            tell(f"{verb} {name}: {answer.code} {answer.message.strip()}")

    def kill_one(self, rng: random.Random) -> str:
        """Kill a plugin; returns its request, "" if none ran."""
        with self._lock:
            if not self._running:
                return ""
            process, what = rng.choice(list(self._running.items()))
            process.kill()
            return what

    def kill_all(self) -> None:
        with self._lock:
            for process in self._running:
                process.kill()


class Runtime:
    """Runs containers until `calm` is set; then most undisturbed containers stay.

    Of the others most die without a DEL: nobody but the agent itself can tidy up after these.
    """

    def __init__(self, host: Host, plugins: Plugins, promises: Promises, record: Record, rng: random.Random) -> None:
        self.host = host
        self._plugins = plugins
        self._promises = promises
        self._record = record
        self._rng = rng

    def run(self, calm: threading.Event) -> None:
        while not calm.wait(self._rng.uniform(0.0, 1.0)) and not self._record.over.is_set():
            container = self.host.container()
            self._promises.made(self.host, container)
            while (promise := self._add(container)) and not self._record.over.is_set():
                self._live(promise, calm)
                if calm.is_set() and self._promises.holds(promise) and self._rng.random() < 0.8:
                    return
                if self._rng.random() < 0.85 or calm.is_set() or self._promises.is_disturbed(container):
                    break
                self.delete(container)  # then ADD again in the same namespace
            self._end(container, 0.7 if calm.is_set() else 0.1)

    # --- a container's life --------------------------------------------------------------------------

    def _add(self, container: Container) -> Promise | None:
        """ADD, repeated after a kill of the plugin as by some runtimes; None if it failed."""
        conf = self.host.conf(self._rng.choice(VERSIONS), TimeoutSeconds=self._rng.choice((4, 10, 30)))
        for _ in range(3):
            answer = self._plugins.ask("ADD", self.host, container.name, conf)
            if answer is not None or self._rng.random() < 0.5 or self._record.over.is_set():
                break
        if answer is None:
            return None
        if answer.status:
            if answer.code != LATER and not (answer.code in UNDONE and self._promises.is_disturbed(container)):
                self._record.fail(f"ADD {container.name}: {answer.code} {answer.message}", container.name)
            return None
        promise = Promise(self.host, container, answer.result, conf)
        if other := self._promises.promise(promise):
            claim = f"{promise.name} was promised {promise.address}, which {other.name} has"
            self._record.fail(claim, promise.name, other.name, promise.nic_id)
        check(promise, self._promises, self._record)
        return promise

    def _live(self, promise: Promise, calm: threading.Event) -> None:
        until = time.monotonic() + self._rng.expovariate(1 / 4.0)
        while time.monotonic() < until and not calm.wait(self._rng.uniform(0.2, 1.5)):
            match self._rng.random():
                case chance if chance < 0.25 and promise.conf["cniVersion"] != VERSIONS[0]:
                    self._check(promise)
                case chance if chance < 0.35:
                    self._add_again(promise)
                case chance if chance < 0.40:
                    self._collect()
            if not self._promises.holds(promise):
                return

    def _check(self, promise: Promise) -> None:
        answer = self._plugins.ask("CHECK", self.host, promise.name, {**promise.conf, "prevResult": promise.result})
        if answer is None or not answer.status or answer.code == LATER:
            return
        if self._promises.holds(promise) or answer.code not in UNDONE | {FAULTY}:
            self._record.fail(f"CHECK {promise.name}: {answer.code} {answer.message}", promise.name, promise.nic_id)

    def _add_again(self, promise: Promise) -> None:
        """A repeated ADD gets the first answer, unless somebody meddled; one that is killed changes nothing."""
        answer = self._plugins.ask("ADD", self.host, promise.name, promise.conf)
        if answer is None or not self._promises.holds(promise):
            return
        if answer.status and answer.code != LATER:
            self._record.fail(f"ADD again {promise.name}: {answer.code} {answer.message}", promise.name)
        elif not answer.status and answer.result != promise.result:
            claim = f"ADD again {promise.name}: {answer.result} instead of {promise.result}"
            self._record.fail(claim, promise.name, promise.nic_id)

    def _collect(self) -> None:
        """GC by a list from which some are missing: none of those that live may be taken away for it."""
        mine = [c for host, c in self._promises.containers() if host.name == self.host.name]
        listed = [{"containerID": container.name, "ifname": "eth0"} for container in mine if self._rng.random() < 0.8]
        self._plugins.ask("GC", self.host, "", self.host.conf(GC_VERSION) | {"cni.dev/valid-attachments": listed})

    # --- its end -------------------------------------------------------------------------------------

    def _end(self, container: Container, unannounced: float) -> None:
        """In one of the ways that runtimes have; *unannounced*: how likely no DEL comes."""
        if self._rng.random() < unannounced:
            self._promises.disturb(container, "its namespace goes, and no DEL comes")
            self._remove(container)
            self._record.count("containers that died without DEL")
        elif self._rng.random() < 0.2:
            self._promises.disturb(container, "its namespace goes before the DEL")
            self._remove(container)
            self.delete(container)
        else:
            self.delete(container)
            self._remove(container)
        self._promises.withdraw(container)
        self._promises.gone(self.host, container)

    def delete(self, container: Container) -> None:
        """DEL until it has succeeded, as runtimes do."""
        self._promises.withdraw(container)
        conf = self.host.conf(self._rng.choice(VERSIONS))
        until = time.monotonic() + DEL_SECONDS
        while not self._record.over.is_set():
            answer = self._plugins.ask("DEL", self.host, container.name, conf)
            if answer is not None and not answer.status:
                return
            if time.monotonic() > until:
                self._record.fail(f"DEL {container.name} does not succeed in {DEL_SECONDS} s", container.name)
            time.sleep(0.2)

    def _remove(self, container: Container) -> None:
        run("ip", "netns", "delete", container.name, check=False)

    def finish(self, containers: Iterable[Container]) -> None:
        """Delete what was left at the end."""
        for container in containers:
            self.delete(container)
            self._remove(container)
            self._promises.gone(self.host, container)
