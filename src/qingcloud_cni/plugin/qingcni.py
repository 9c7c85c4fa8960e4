"""The CNI plugin: sends a request of the container runtime to qingagent and prints its answer.

It starts for every pod, so it must start fast: one file, no imports but those below, `posix._exit` at the end.
`qingagent install-plugin` writes it with a shebang that omits `site`. Stdout gets one JSON document, or nothing.
If the agent does not answer, the plugin spools a DEL as a file for it, and succeeds.
"""

import posix
from time import CLOCK_BOOTTIME, clock_gettime, monotonic, sleep

try:
    import _socket as net
except ImportError:  # not CPython
    import socket as net  # type: ignore[no-redef]

TYPE_CHECKING = False  # as in typing, whose import would double the start
if TYPE_CHECKING:
    from typing import Any, NoReturn

VERSIONS = {  # the verbs that each version of the specification allows besides VERSION
    "0.1.0": ("ADD", "DEL"),
    "0.2.0": ("ADD", "DEL"),
    "0.3.0": ("ADD", "DEL"),
    "0.3.1": ("ADD", "DEL"),
    "0.4.0": ("ADD", "DEL", "CHECK"),
    "1.0.0": ("ADD", "DEL", "CHECK"),
    "1.1.0": ("ADD", "DEL", "CHECK", "GC", "STATUS"),
}
OLDEST, NEWEST = "0.1.0", "1.1.0"
VERBS = {  # the variables that each verb needs besides CNI_COMMAND, and the seconds for its whole request
    "ADD": (("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), 110.0),
    "DEL": (("CNI_CONTAINERID", "CNI_IFNAME"), 50.0),
    "CHECK": (("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), 50.0),
    "GC": ((), 25.0),
    "STATUS": ((), 3.0),
}
LOCAL_SECONDS = 1.0  # of them, a tenth at most, for work after the agent's deadline, such as a spooled DEL
RETURN_SECONDS = 1.0  # before that deadline, half of the time left at most, for the way of the answer
RUN_DIR = "/run/qingcloud-cni"
TARGET = "/v1/cni"  # of the agent's API
MAX_BYTES = 8 * 1024 * 1024  # of a configuration or an answer
WHITESPACE = " \t\r\n"
ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
ID_CHARS = ALNUM | frozenset("_.-")


class CniError(Exception):
    """An error object: docs/reference/cni.md, "Errors"."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class NoAnswer(CniError):
    """The agent gave no complete answer, or another program has its address."""


class Request:
    """The runtime's request; *version* is that of error objects until the configuration is read."""

    version = NEWEST
    verb = ""
    container_id = ""
    netns = ""
    ifname = ""
    stdin = b""
    network = ""
    address = ""  # the agent's, as written
    endpoint: "tuple[str, int] | str" = ""  # the same for connect(): a path, or host and port
    instance_id = ""  # of the agent's host, if configured
    spool = ""

    def __init__(self) -> None:
        self.uptime = clock_gettime(CLOCK_BOOTTIME)  # seconds from the host's boot to the request
        self.deadline = monotonic()  # for the agent's answer
        self.seconds = 0.0  # for the whole request
        self.config: dict[str, object] = {}
        self.args: dict[str, object] = {}


# --- JSON without the json package: its import alone would double the start ---------------------------


class ScannerContext:
    """The context that `json.decoder.JSONDecoder` passes to the scanner in C."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> None:  # NaN, Infinity: Python's, not JSON's
        raise ValueError(name)


def decode(data: bytes) -> object:
    """The JSON value in *data*; ValueError names the mistake."""
    text = data.decode("utf-8").strip(WHITESPACE)
    try:
        from _json import make_scanner

        value, end = make_scanner(ScannerContext)(text, 0)  # type: ignore[arg-type]
        if end == len(text):
            return value
    except Exception:  # noqa: BLE001, S110 - StopIteration, or SystemError without json.decoder: not JSON
        pass
    import json  # slow, but it names the position, and exists without _json

    try:
        return json.loads(text, parse_constant=ScannerContext.parse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def quote(text: str) -> str:
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        from json.encoder import py_encode_basestring_ascii as encode_basestring_ascii
    return str(encode_basestring_ascii(text))


def members(fields: "tuple[tuple[str, str], ...]") -> str:
    return "".join(f'"{key}":{quote(value)},' for key, value in fields)


def lookup(mapping: "dict[str, object]", key: str) -> object:
    """A key's value without regard to case, the last one's as in Go; None if absent."""
    folded = key.lower()
    value = None
    for name in mapping:
        if name.lower() == folded:
            value = mapping[name]
    return value


# --- the request ---------------------------------------------------------------------------------------


def variable(name: str) -> str:
    value = posix.environ.get(name.encode(), b"")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise CniError(4, f"{name} is not UTF-8", repr(value)) from None


def optional_variable(name: str) -> str:
    """A variable that the plugin itself does not use; undecodable bytes are replaced."""
    return posix.environ.get(name.encode(), b"").decode("utf-8", "replace")


def is_id(text: str) -> bool:
    return text[:1] in ALNUM and ID_CHARS.issuperset(text)


def check_ifname(name: str) -> None:
    fault = ""
    if len(name.encode()) > 15:
        fault = "interface name is too long"
    elif name in {".", ".."}:
        fault = "interface name is . or .."
    elif any(char in "/:%" or char.isspace() for char in name):
        fault = "interface name contains / : % or a blank"  # the kernel would expand eth%d
    if fault:
        raise CniError(4, fault, f"CNI_IFNAME={name!r}")


def read_environment(request: Request) -> None:
    request.verb = variable("CNI_COMMAND")
    if request.verb == "VERSION":
        return
    request.container_id = variable("CNI_CONTAINERID")
    request.netns = variable("CNI_NETNS")
    request.ifname = variable("CNI_IFNAME")
    if request.container_id and not is_id(request.container_id):
        raise CniError(4, "invalid characters in containerID", f"CNI_CONTAINERID={request.container_id!r}")
    if request.ifname:
        check_ifname(request.ifname)
    if not request.verb:
        needed: tuple[str, ...] = ("CNI_COMMAND",)
    else:
        needed = VERBS[request.verb][0] if request.verb in VERBS else ()
    missing = [name for name in needed if not variable(name)]
    if missing:
        raise CniError(4, f"required env variables [{','.join(missing)}] missing")


def read_stdin() -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        chunk = posix.read(0, 65536)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BYTES:
            raise CniError(6, f"network configuration: read failed: larger than {MAX_BYTES} bytes")


def read_config(request: Request) -> None:
    """Read and check stdin in the order of the reference library."""
    try:
        request.stdin = read_stdin()
    except OSError as err:
        raise CniError(5, "stdin: read failed", reason(err)) from None
    try:
        config = decode(request.stdin)
    except ValueError as err:
        raise CniError(6, "network configuration: parse failed: not JSON", str(err)) from None
    if not isinstance(config, dict):
        raise CniError(6, "network configuration: parse failed: not a JSON object")
    request.config = config
    version = lookup(config, "cniVersion")
    if isinstance(version, str) and version in VERSIONS:
        request.version = version
    name = lookup(config, "name")
    if not name:
        raise CniError(7, "missing network name", 'the network configuration needs one, such as "name": "mynet"')
    if not isinstance(name, str) or not is_id(name):
        raise CniError(7, "invalid characters found in network name", f"name={name!r}")
    request.network = name
    if request.verb not in VERBS:
        raise CniError(4, f"unknown CNI_COMMAND: {request.verb}")
    if version is None or version == "":
        request.version = version = OLDEST
    if not isinstance(version, str):
        raise CniError(6, "cniVersion is not a string")
    if version not in VERSIONS:
        raise CniError(
            1, "incompatible CNI versions", f"config is {version!r}, plugin supports {', '.join(VERSIONS)}"
        )
    if request.verb not in VERSIONS[version]:
        raise CniError(1, f"config version does not allow {request.verb}", f"cniVersion is {version}")
    if request.verb == "CHECK" and lookup(config, "prevResult") is None:
        raise CniError(7, "required prevResult missing", "CHECK compares with the result of ADD")


def read_args(request: Request) -> None:
    args = lookup(request.config, "args")
    if args is not None and not isinstance(args, dict):
        raise CniError(7, "args must be an object", f"args={args!r}")
    request.args = args or {}
    seconds = VERBS[request.verb][1]
    limit = lookup(request.args, "TimeoutSeconds")
    if limit is not None:
        if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not limit > 0:
            raise CniError(7, "args.TimeoutSeconds must be a number of seconds above 0", repr(limit))
        seconds = min(seconds, limit)
    request.seconds = seconds
    request.instance_id = text_arg(request.args, "InstanceID")
    if not request.instance_id.isprintable():
        raise CniError(7, "InstanceID must be an instance's id", repr(request.instance_id))
    request.deadline += seconds - min(LOCAL_SECONDS, seconds / 10)


def text_arg(mapping: "dict[str, object]", key: str) -> str:
    value = lookup(mapping, key)
    if value is not None and not isinstance(value, str):
        raise CniError(7, f"{key} must be text", repr(value))
    return value or ""


def is_path(text: str) -> bool:
    return text[:1] == "/" and text.isprintable()  # halves of a surrogate pair are not printable


# --- the agent -----------------------------------------------------------------------------------------


def reason(err: OSError) -> str:
    if err.errno == 2:
        return "it does not exist"  # the system's own message would make containerd treat a failed DEL as a success
    return posix.strerror(err.errno).lower() if err.errno else str(err)


def parse_address(request: Request) -> None:
    address = text_arg(request.args, "BindAddr") or text_arg(request.config, "bindaddr")
    request.address = address = address or f"unix://{RUN_DIR}/agent.sock"
    if address.startswith("unix://"):
        path = address[7:]
        if not is_path(path):
            raise CniError(7, "BindAddr must name an absolute path after unix://", address)
        if len(path.encode()) > 107:
            raise CniError(7, "BindAddr names a socket path longer than 107 bytes", address)
        request.endpoint = path
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise CniError(7, "BindAddr must be host:port or unix:///path", address)
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
        family = net.AF_INET6
        host = "::1" if host == "::" else host
    else:
        family = net.AF_INET
        host = "127.0.0.1" if host in {"", "0.0.0.0", "localhost"} else host  # noqa: S104 - the agent's, to connect to
    try:
        net.inet_pton(family, host)
    except (OSError, ValueError):
        raise CniError(7, "the host in BindAddr must be an IP address or localhost", address) from None
    request.endpoint = (host, int(port))


def token_path(request: Request) -> str:
    return text_arg(request.args, "TokenFile") or f"{RUN_DIR}/token"


def read_token(request: Request) -> bytes:
    path = token_path(request)
    named = f"token file {path}"
    try:
        file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOFOLLOW)
        try:
            info = posix.fstat(file)
            token = posix.read(file, 4097).strip() if info.st_mode & 0o170000 == 0o100000 else b""
        finally:
            posix.close(file)
    except FileNotFoundError:  # each start of the agent makes one
        raise no_answer(request, f"{named}: read failed: it does not exist; is qingagent running?") from None
    except (OSError, ValueError) as err:
        raise CniError(7, f"{named}: read failed", reason(err) if isinstance(err, OSError) else str(err)) from None
    if info.st_uid != 0:
        raise CniError(7, f"{named}: rejected: it belongs to user {info.st_uid}, not to root")
    if info.st_mode & 0o077:
        raise CniError(7, f"{named}: rejected: other users than root may use it (mode {info.st_mode & 0o7777:04o})")
    if not token or len(token) > 4096 or not all(33 <= byte <= 126 for byte in token):
        raise CniError(7, f"{named}: rejected: it does not hold a token")
    return token


def send(request: Request) -> "tuple[int, bytes]":
    """Send the request once; returns status and body of the answer."""
    try:
        sock = open_unix(request)
        if sock is None:
            return send_over_tcp(request, request.endpoint)  # type: ignore[arg-type]
        answer = exchange(request, sock, http_request(request, "Connection: close\r\n"))
    except TimeoutError:
        raise timed_out(request) from None
    except OSError as err:
        raise no_answer(request, "request failed: the connection broke off", reason(err)) from None
    return answer[0], answer[2]


def open_unix(request: Request) -> "net.socket | None":
    """Connect to the agent's unix socket; None if it is to be reached over TCP.

    If the address is of this host, the socket beside the token is preferred: any program may listen on a port.
    """
    endpoint = request.endpoint
    if isinstance(endpoint, str):
        return connect(request, net.AF_UNIX, endpoint)
    path = token_path(request).rpartition("/")[0] + "/agent.sock"
    if not is_path(path) or len(path.encode()) > 107 or not is_here(endpoint):
        return None
    try:
        sock = connect(request, net.AF_UNIX, path)
    except NoAnswer:
        return None
    request.address = f"unix://{path}"
    return sock


def is_here(endpoint: "tuple[str, int]") -> bool:
    """Whether the address is this host's: the kernel then sends from the same one."""
    if endpoint[0][:4] == "127.":
        return True
    family = family_of(endpoint)
    try:
        sock = net.socket(family, net.SOCK_DGRAM | net.SOCK_CLOEXEC)
        sock.connect(endpoint)  # of a datagram socket: sends nothing
        source = sock.getsockname()[0]
    except OSError:
        return False
    return net.inet_pton(family, source) == net.inet_pton(family, endpoint[0])


def family_of(endpoint: "tuple[str, int]") -> int:
    return net.AF_INET6 if ":" in endpoint[0] else net.AF_INET


def exchange(request: Request, sock: net.socket, message: bytes) -> "tuple[int, bytes, bytes]":
    """Send the message; returns status, head and body of the answer."""
    sock.settimeout(seconds_left(request))
    try:
        sock.sendall(message)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it may have answered with an error before it read all
    return receive(request, sock)


def no_answer(request: Request, failure: str, details: str = "") -> NoAnswer:
    return NoAnswer(11, f"agent at {request.address}: {failure}", details)


def timed_out(request: Request) -> NoAnswer:
    return no_answer(request, f"request failed: no answer within {request.seconds:g} s")


def connect(request: Request, family: int, endpoint: "tuple[str, int] | str") -> net.socket:
    sock = net.socket(family, net.SOCK_STREAM | net.SOCK_CLOEXEC)
    while True:
        sock.settimeout(seconds_left(request))
        try:
            sock.connect(endpoint)
            break
        except BlockingIOError:  # a unix socket whose queue is full
            sleep(0.01)
        except TimeoutError:
            raise
        except OSError as err:
            raise no_answer(request, f"connect failed: {reason(err)}; is qingagent running?") from None
    if family == net.AF_UNIX:
        uid = memoryview(sock.getsockopt(net.SOL_SOCKET, net.SO_PEERCRED, 12)).cast("i")[1]  # of a struct ucred
        if uid not in {0, posix.geteuid()}:
            raise no_answer(request, f"connect failed: user {uid} listens there, not root")
    return sock


def seconds_left(request: Request) -> float:
    seconds = request.deadline - monotonic()
    if seconds <= 0:
        raise timed_out(request)
    return seconds


def http_request(request: Request, headers: str, content: bytes = b"") -> bytes:
    content = content or request_body(request, seconds_left(request))
    head = f"POST {TARGET} HTTP/1.1\r\nHost: qingagent\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def request_body(request: Request, seconds: float) -> bytes:
    """The request for the agent, whose answer must arrive within *seconds*."""
    body = members((
        ("command", request.verb),
        ("containerID", request.container_id),
        ("netns", request.netns),
        ("ifname", request.ifname),
        ("args", optional_variable("CNI_ARGS")),
        ("path", optional_variable("CNI_PATH")),
    ))  # fmt: skip
    body += f'"timeout":{max(seconds - RETURN_SECONDS, seconds / 2):.3f},"config":'
    return b"{" + body.encode() + request.stdin + b"}"


def receive(request: Request, sock: net.socket) -> "tuple[int, bytes, bytes]":
    """Status, head and body of the answer; NoAnswer unless it is complete HTTP."""
    data = head = b""
    length = -1  # of the whole answer, once its head is read
    while length < 0 or len(data) < length:
        sock.settimeout(seconds_left(request))
        chunk = sock.recv(65536)
        data += chunk
        if data[:7] != b"HTTP/1."[: len(data)]:
            raise no_answer(request, "read answer failed: it is not HTTP; another program listens there")
        if not chunk:
            cause = f"it broke off after {len(data)} bytes" if data else "the connection closed before it"
            raise no_answer(request, f"read answer failed: {cause}")
        if len(data) > MAX_BYTES:
            raise no_answer(request, f"read answer failed: it has more than {MAX_BYTES} bytes")
        if length < 0 and b"\r\n\r\n" in data:
            head = data[: data.index(b"\r\n\r\n") + 4]
            length = len(head) + body_length(request, head)
    return int(head[9:12]), head, data[len(head) : length]


def body_length(request: Request, head: bytes) -> int:
    first = head.partition(b"\r\n")[0]
    if first[8:9] == b" " and first[9:12].isdigit() and first[12:13] in {b" ", b""}:
        value = header(head, b"content-length")
        if value.isdigit() and len(value) < 20:
            return int(value)
    raise no_answer(request, "read answer failed: it is not that of qingagent")


def header(head: bytes, wanted: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            return value.strip()
    return b""


def ask_agent(request: Request) -> bytes:
    """The agent's answer, to be printed: a result for ADD, nothing for the other verbs."""
    status, body = send(request)
    if status == 200 and request.verb != "ADD" and not body.strip():
        return b""
    try:
        answer = decode(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and answer:
        if status == 200 and request.verb == "ADD":
            return body
        code, msg, details = answer.get("code"), answer.get("msg"), answer.get("details")
        if status != 200 and isinstance(code, int) and code > 0 and isinstance(msg, str) and msg:
            raise CniError(int(code), msg, details if isinstance(details, str) else "")
    raise no_answer(request, f"read answer failed: HTTP {status} without a CNI answer")


# --- TCP: any program of this host may listen there, so nobody sends the token ----------------------------
# docs/decisions/0022-requests-over-tcp-are-signed.md; the imports are paid on this way alone.


def send_over_tcp(request: Request, endpoint: "tuple[str, int]") -> "tuple[int, bytes]":
    """As `send`, and believes nobody who does not know the token."""
    from _operator import _compare_digest as is_same

    sock = connect(request, family_of(endpoint), endpoint)
    token, named = read_token(request), f"the token in {token_path(request)}"
    ends = " ".join(f"{end[0].removeprefix('::ffff:')} {end[1]}" for end in (sock.getsockname(), sock.getpeername()))
    nonce = posix.urandom(32).hex()
    challenge = f"GET /v1/challenge?nonce={nonce} HTTP/1.1\r\nHost: qingagent\r\n\r\n"
    status, _, body = exchange(request, sock, challenge.encode())
    theirs, proofs = read_challenge(body) if status == 200 else ("", [])
    if not theirs:
        cause = f"HTTP {status}; an agent of another version or another program listens there"
        raise no_answer(request, f"challenge failed: {cause}")
    nonces = ends, nonce, theirs
    expected = seal(token, "qingcni challenge 1", *nonces)
    if not any(is_same(proof, expected) for proof in proofs):
        cause = f"the answer is not proved with {named}; another agent or program listens there"
        raise no_answer(request, f"challenge failed: {cause}")
    content = request_body(request, seconds_left(request))
    digest = find_sha256()(content).hexdigest()
    sealed = seal(token, "qingcni request 1", *nonces, "POST", TARGET, digest)
    headers = f"Connection: close\r\nAuthorization: Qingcni {digest} {sealed}\r\n"
    status, head, body = exchange(request, sock, http_request(request, headers, content))
    expected = seal(token, "qingcni answer 1", sealed, str(status), body)
    if not is_same(header(head, b"authentication-info"), expected.encode()):
        raise no_answer(request, f"read answer failed: HTTP {status}, not signed with {named}")
    return status, body


def read_challenge(body: bytes) -> "tuple[str, list[str]]":
    """The agent's nonce and its proofs; empty if they are none."""
    try:
        answer = decode(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        nonce, proofs = answer.get("nonce"), answer.get("proofs")
        if isinstance(nonce, str) and len(nonce) == 64 and nonce.isalnum() and isinstance(proofs, list):
            return nonce, [proof for proof in proofs if isinstance(proof, str) and proof.isascii()]
    return "", []


def seal(token: bytes, *parts: "str | bytes") -> str:
    """HMAC-SHA256 (RFC 2104) in hex of the parts, each with its length before it."""
    sha256 = find_sha256()
    encoded = [part if isinstance(part, bytes) else part.encode() for part in parts]
    text = b"".join(b"%d:%s," % (len(part), part) for part in encoded)
    key = (token if len(token) <= 64 else sha256(token).digest()).ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in key) + text).digest()
    return str(sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest())


def find_sha256() -> "Any":
    """CPython's own, since `hashlib` loads OpenSSL, which takes longer than all else."""
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found]  # before Python 3.12
        except ImportError:
            from hashlib import sha256
    return sha256


# --- a spooled DEL ------------------------------------------------------------------------------------


def spool_directory(request: Request) -> str:
    """The configured spool directory, or the one beside the agent's socket."""
    directory = text_arg(request.args, "SpoolDir")
    if directory and not is_path(directory):
        raise CniError(7, "SpoolDir must name an absolute path", directory)
    if directory or not isinstance(request.endpoint, str):
        return directory or f"{RUN_DIR}/spool"
    return request.endpoint.rpartition("/")[0] + "/spool"


def spool_del(request: Request, cause: NoAnswer) -> None:
    """Write the DEL as a file for the agent, in place of one for an earlier DEL of the same attachment."""
    key = (("network", request.network), ("containerID", request.container_id), ("ifname", request.ifname))
    name = find_sha256()("\0".join(value for _, value in key).encode()).hexdigest() + ".json"
    failure = f"{cause.msg}; spool directory {request.spool}: write failed"
    try:
        target = (("address", request.address), ("instanceID", request.instance_id), ("bootID", read_boot_id()))
        head = members(target + key) + f'"uptime":{request.uptime:.6f},"request":'
        content = b"{" + head.encode() + request_body(request, VERBS["DEL"][1]) + b"}\n"
        posix.umask(0o077)  # directories and files for root alone, whatever it was
        make_directory(request.spool)
        try:
            flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
            directory = posix.open(request.spool, flags)
        except NotADirectoryError:
            raise CniError(11, failure, "a link or a file is there; remove it") from None
        info = posix.fstat(directory)
        if info.st_uid != 0 or info.st_mode & 0o022:
            raise CniError(11, failure, "other users than root may write there")
        write_file(directory, name, content)
    except OSError as err:
        raise CniError(11, failure, reason(err)) from None
    note = sanitized(f"qingcni: {cause.msg}; spooled the DEL of {request.container_id} as {request.spool}/{name}")
    try:
        write_all(2, f"{note}\n".encode())
    except OSError:
        pass


def read_boot_id() -> str:
    """The kernel's id of this boot: only uptimes of one boot are comparable."""
    file = posix.open("/proc/sys/kernel/random/boot_id", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(file, 100).decode().strip()
    finally:
        posix.close(file)


def make_directory(path: str) -> None:
    directory = ""
    for part in path.strip("/").split("/"):
        directory += "/" + part
        try:
            posix.mkdir(directory, 0o700)
        except FileExistsError:
            pass


def write_file(directory: int, name: str, content: bytes) -> None:
    """Write the file into the open directory, and its name to disk, or nothing."""
    draft = f".{name}.{posix.urandom(4).hex()}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    file = posix.open(draft, flags, 0o600, dir_fd=directory)
    try:
        try:
            write_all(file, content)
            posix.fsync(file)
        finally:
            posix.close(file)
        posix.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        try:
            posix.unlink(draft, dir_fd=directory)
        except OSError:
            pass
        raise
    posix.fsync(directory)


# --- the answer ----------------------------------------------------------------------------------------


def version_result() -> bytes:
    """The versions, with the configuration's own if it is supported; VERSION needs no configuration."""
    config = None
    try:
        stdin = read_stdin()
        if stdin:
            config = decode(stdin)
    except (OSError, ValueError, CniError):
        pass
    version = lookup(config, "cniVersion") if isinstance(config, dict) else None
    spoken = version if isinstance(version, str) and version in VERSIONS else NEWEST
    versions = ",".join(quote(text) for text in VERSIONS)
    return f'{{"cniVersion":{quote(spoken)},"supportedVersions":[{versions}]}}'.encode()


def handle(request: Request) -> bytes:
    read_environment(request)
    if request.verb == "VERSION":
        return version_result()
    read_config(request)
    read_args(request)
    parse_address(request)
    request.spool = spool_directory(request)
    try:
        return ask_agent(request)
    except NoAnswer as error:
        if request.verb == "STATUS":
            raise CniError(50, error.msg, error.details) from None  # the agent cannot serve an ADD
        if request.verb != "DEL":
            raise
        spool_del(request, error)
        return b""


def error_object(version: str, error: CniError) -> bytes:
    details = f',"details":{quote(sanitized(error.details))}' if error.details else ""
    text = f'{{"cniVersion":{quote(version)},"code":{error.code},"msg":{quote(sanitized(error.msg))}{details}}}'
    return text.encode()


def sanitized(text: str) -> str:
    """Return *text* without the phrases that make containerd (go-cni) treat a failed DEL as a success.

    What a terminal would obey is escaped, as the agent does it.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.replace("not found", "missing").replace("no such file", "missing file")


def write_all(file: int, content: bytes) -> None:
    while content:
        content = content[posix.write(file, content) :]


def finish(status: int, output: bytes) -> "NoReturn":
    """Print and end; a regular end of the interpreter would cost 3 ms more."""
    try:
        write_all(1, output)
    except OSError:
        status = 1
    posix._exit(status)  # noqa: SLF001 - public despite its name


def main() -> None:
    request = Request()
    try:
        finish(0, handle(request))
    except CniError as error:
        finish(1, error_object(request.version, error))
    except BaseException as err:  # noqa: BLE001 - after any exception the runtime gets an error object
        failure = CniError(999, f"qingcni: request failed: {type(err).__name__}", str(err))
        finish(1, error_object(request.version, failure))


if __name__ == "__main__":
    main()
