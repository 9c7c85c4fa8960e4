"""An agent whose API has a private CA, behind a proxy of the environment."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from machines.hosts import Host, NewHost
from machines.relays import Proxy, new_authority, tls_before
from machines.simulator import eventually
from qingcloud_cni.sim.fabric.shell import inside

HOSTS = 2
NAME = "api.cloud.example"  # only the proxy knows it


@pytest.fixture
def host(new_host: NewHost) -> Host:
    return new_host()


@pytest.fixture
def proxy(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In the environment of agents: leads to the simulator's API on *host*, behind TLS with a CA in *tmp_path*."""

    def connect(port: int) -> socket.socket:
        return inside(host.netns, lambda: socket.create_connection(("127.0.0.1", port)))

    tls = new_authority(tmp_path).server(NAME)
    for name in ("SSL_CERT_FILE", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        front, behind = (inside(host.netns, lambda: socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        port = front.getsockname()[1]
        stack.enter_context(tls_before(front, tls, lambda: connect(7777)))
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{behind.getsockname()[1]}")
        yield stack.enter_context(Proxy(lambda: connect(port)).listening(behind))


def access_file(host: Host, **changes: object) -> Path:
    path = host.directory / "client.yaml"
    keys = yaml.safe_load(Path(host.sim.host(host.name)["client_yaml"]).read_text())
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(keys | {"host": NAME, "port": 443, "protocol": "https", **changes}))
    return path


def test_an_agent_works_through_a_proxy_with_a_private_ca(host: Host, proxy: Proxy, tmp_path: Path) -> None:
    path = access_file(host, ca_file=str(tmp_path / "ca.pem"))
    host.start(QYAccessFilePath=path, min_idle=1, max_idle=1)
    host.add(host.container())
    assert set(proxy.heads) == {f"CONNECT {NAME}:443 HTTP/1.1"}
    cloud = host.get("/v1/config")["cloud"]
    assert (cloud["endpoint"], cloud["ca_file"]) == (f"https://{NAME}:443", str(tmp_path / "ca.pem"))
    assert cloud["proxy"].startswith("http://127.0.0.1:")


def test_status_names_a_certificate_that_is_not_accepted(host: Host, proxy: Proxy) -> None:
    agent = host.launch(QYAccessFilePath=access_file(host))
    eventually(lambda: agent.events("cloud.unanswered"), "an unanswered call")
    assert proxy.heads
    shown = " ".join(host.qingagent("status").stdout.split())
    assert "its certificate is not accepted: " in shown
    assert "ca_file" in shown
    assert f"https://{NAME}:443 through the proxy http://127.0.0.1:" in host.status()["cloud_error"]
