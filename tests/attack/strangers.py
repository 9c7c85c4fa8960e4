"""D: processes without rights on the host, and containers that reach it."""

from pathlib import Path

from attack.registry import case
from attack.scene import ENVIRONMENT, NOBODY, Scene, assert_works, hostile
from machines.hosts import PORT, Host
from machines.simulator import run

HELD = 1500  # connections; the usual soft limit of open files is 1024
LOOPBACK = "127.0.0.1"


def connected(host: Host) -> tuple[str, str]:
    """Namespace and address of a container with a NIC."""
    container = host.container()
    host.add(container)
    return container.path, container.name


@case("D", is_short=True)
def half_requests_of_a_container(scene: Scene) -> None:
    """A container holds 1,500 connections with half a request each. Other containers come and go."""
    host = scene.host(max_nics=3)
    path, _ = connected(host)
    scene.attacker("nsenter", f"--net={path}", *hostile("half_requests", host.address, PORT, HELD))
    for _ in range(3):
        assert_works(host)
    assert host.agent.log.stat().st_size < 2**20, "the log grows"
    assert host.is_ready(host.agent)


@case("D")
def half_requests_of_a_process(scene: Scene) -> None:
    """A process of the host without rights holds 1,500 connections. Containers come and go."""
    host = scene.host()
    scene.attacker(*host.command(*hostile("half_requests", LOOPBACK, PORT, HELD)))
    for _ in range(3):
        assert_works(host)
    assert host.agent.log.stat().st_size < 2**20, "the log grows"


@case("D")
def metrics_in_a_loop(scene: Scene) -> None:
    """Eight processes ask for the metrics all the time. Containers come and go."""
    host = scene.host()
    for _ in range(8):
        scene.attacker(*host.command(*hostile("ask_metrics", host.address, PORT)))
    for _ in range(3):
        assert_works(host)


@case("D", is_short=True)
def files_of_the_agent(scene: Scene) -> None:
    """A process without rights reads token, state file and access file, and connects to the socket. It may not."""
    host = scene.host()
    access = Path(host.sim.host(host.name)["client_yaml"])
    for directory, file in ((host.run_dir, "token"), (host.state_dir, "agent.db"), (access.parent, access.name)):
        # it begins in the parent directory, whose own parents are closed in a test
        read = run(*NOBODY, "cat", f"{directory.name}/{file}", check=False, cwd=directory.parent)
        assert "Permission denied" in read.stderr, (file, read)
    connect = run(*hostile("use_socket", host.run_dir.name), check=False, cwd=host.directory, env=ENVIRONMENT)
    assert connect.stdout == "PermissionError\n", connect


@case("D")
def signals(scene: Scene) -> None:
    """A process without rights signals the agent. It stays."""
    host = scene.host()
    for number in ("TERM", "KILL", "STOP"):
        run(*NOBODY, "kill", f"-{number}", str(host.agent.pid), check=False)
    assert_works(host)


@case("D", is_short=True)
def token_of_a_process_that_listens(scene: Scene) -> None:
    """A process takes the agent's port while the agent is away. It hears no token, and its answer is not believed."""
    host = scene.host()
    host.agent.stop()
    thief = scene.attacker(*host.command(*hostile("listen", PORT)))
    container = host.container()
    answer = host.cni("ADD", container, conf=host.conf(TimeoutSeconds=5))
    assert answer.status, "the plugin believed a stranger"
    thief.kill()
    assert thief.stdout is not None
    heard = thief.stdout.read()
    assert "/v1/" in heard, "the plugin did not come by"
    assert host.token_file.read_text().strip() not in heard, "the plugin sent the token to a stranger"


@case("D")
def stolen_token(scene: Scene) -> None:
    """A container knows the token. From its place it can ask nothing with it."""
    host = scene.host(max_nics=2)
    token = host.token_file.read_text().strip()
    _, netns = connected(host)
    for target in ("/v1/nics", "/v1/status", "/v1/attachments"):
        assert host.ask_tcp(netns, host.address, "GET", target, token=token).status == 403
