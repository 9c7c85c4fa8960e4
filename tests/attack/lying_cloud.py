"""The simulator's API with replies that were changed on their way."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from machines.hosts import Host
from machines.simulator import UnixConnection
from qingcloud_cni.sim.fabric.shell import inside

Reply = dict[str, Any]
Lie = Callable[[str, Reply], Any]  # of action and reply: what is sent instead


class LyingCloud:
    """Replies are changed by *lie* while there is one, and *swallowed* actions are not carried out.

    *told* is how many replies were changed.
    """

    def __init__(self, host: Host) -> None:
        self.lie: Lie | None = None
        self.swallowed: frozenset[str] = frozenset()
        self.told = 0
        self._socket = host.sim.info["api_socket"]
        cloud = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                (action,) = parse_qs(urlsplit(self.path).query)["action"]
                reply: Reply = {"action": f"{action}Response", "ret_code": 0}
                if action not in cloud.swallowed:
                    reply = cloud.ask(self.path)
                body = json.dumps(cloud.answer(action, reply)).encode()
                with suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                pass

        self.server = inside(host.netns, lambda: http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        self.access_file = _access_file(host, self.server.server_address[1])

    def ask(self, target: str) -> Reply:
        """The true reply."""
        upstream = UnixConnection(self._socket)
        try:
            upstream.request("GET", target)
            reply: Reply = json.loads(upstream.getresponse().read())
            return reply
        finally:
            upstream.close()

    def answer(self, action: str, reply: Reply) -> Any:
        if self.lie is None:
            return reply
        before = json.dumps(reply)
        changed = self.lie(action, reply)
        self.told += json.dumps(changed) != before
        return changed


def _access_file(host: Host, port: int) -> Path:
    path = host.directory / "client.yaml"
    path.touch(mode=0o600)
    keys = yaml.safe_load(Path(host.sim.host(host.name)["client_yaml"]).read_text())
    path.write_text(yaml.safe_dump(keys | {"host": "127.0.0.1", "port": port}))
    return path


@contextmanager
def lying_cloud(host: Host) -> Iterator[LyingCloud]:
    """For agents of *host* that are given its `access_file`."""
    cloud = LyingCloud(host)
    thread = threading.Thread(target=cloud.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield cloud
    finally:
        cloud.server.shutdown()
        thread.join()
        cloud.server.server_close()
