"""A crowd without rights at an address: some hold connections with half a request, others ask in a loop.

Run as a program it says each second on stdout how many connections it holds and how many answers it got since its
start, until it is ended.
"""

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

HALF = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
AGAIN = 5.0  # seconds until one that held a connection opens the next
REQUEST = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
START_SECONDS = 60.0


@dataclass
class Crowd:
    address: str
    port: int
    path: bytes
    held: int = 0
    answers: int = 0
    connected: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    async def hold(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.address, self.port)
                self.connected += 1
                self.held += 1
                try:
                    writer.write(HALF)
                    await reader.read()
                finally:
                    self.held -= 1
                    writer.close()
            except OSError as err:
                self._failed(err)
            await asyncio.sleep(AGAIN)

    async def ask(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.address, self.port)
                try:
                    writer.write(REQUEST % self.path)
                    self.answers += (await reader.read()).startswith(b"HTTP/1.1 200 ")
                finally:
                    writer.close()
            except OSError as err:
                self._failed(err)
                await asyncio.sleep(0)

    def _failed(self, err: OSError) -> None:
        name = type(err).__name__
        self.failures[name] = self.failures.get(name, 0) + 1

    async def run(self, holders: int, clients: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(holders):
                group.create_task(self.hold())
            for _ in range(clients):
                group.create_task(self.ask())
            while True:
                await asyncio.sleep(1.0)
                said = {"held": self.held, "answers": self.answers, "connected": self.connected}
                print(json.dumps(said | {"failures": self.failures}), flush=True)


@contextmanager
def crowd(
    command: Sequence[str], address: str, port: int, *, holders: int, clients: int, path: str = "/metrics"
) -> Iterator["subprocess.Popen[str]"]:
    """A crowd as a process of its own behind *command*, which enters its namespace; it has begun."""
    argv = [*command, sys.executable, __file__, address, str(port), path, str(holders), str(clients)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        connected = 0
        while connected < holders:
            line = process.stdout.readline()
            assert line, f"the crowd ended with {process.wait()}"
            connected = json.loads(line)["connected"]
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd_ = Crowd(sys.argv[1], int(sys.argv[2]), sys.argv[3].encode())
    asyncio.run(crowd_.run(*map(int, sys.argv[4:6])))
