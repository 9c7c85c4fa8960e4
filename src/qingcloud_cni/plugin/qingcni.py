"""The CNI plugin: carries a request of the container runtime to qingagent and prints its answer.

It runs for every pod, so its start decides: one file, no imports but those below, `posix._exit` at the end.
`qingagent install-plugin` writes it with a shebang that leaves `site` out. Stdout gets one JSON document, or nothing.
Where the agent cannot be asked, a DEL becomes a file for it, and succeeds.
"""

import posix
from time import CLOCK_BOOTTIME, clock_gettime, monotonic, sleep

try:
    import _socket as net
except ImportError:  # not CPython
    import socket as net  # type: ignore[no-redef]

TYPE_CHECKING = False  # as in typing, whose import would double the start
if TYPE_CHECKING:
    from typing import NoReturn

VERSIONS = {  # what differs between the versions of the specification: the verbs each allows, besides VERSION
    "0.1.0": ("ADD", "DEL"),
    "0.2.0": ("ADD", "DEL"),
    "0.3.0": ("ADD", "DEL"),
    "0.3.1": ("ADD", "DEL"),
    "0.4.0": ("ADD", "DEL", "CHECK"),
    "1.0.0": ("ADD", "DEL", "CHECK"),
    "1.1.0": ("ADD", "DEL", "CHECK", "GC", "STATUS"),
}
OLDEST, NEWEST = "0.1.0", "1.1.0"
VERBS = {  # the variables each verb needs besides CNI_COMMAND, and the seconds its whole request may take
    "ADD": (("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), 110.0),
    "DEL": (("CNI_CONTAINERID", "CNI_IFNAME"), 50.0),
    "CHECK": (("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), 50.0),
    "GC": ((), 25.0),
    "STATUS": ((), 3.0),
}
LAST = 1.0  # seconds of them, a tenth at most, in which the agent is waited for no more: for what is done without it
SPARE = 1.0  # seconds before these, half of what is left at most, by which the agent is to answer: the way back
RUN_DIR = "/run/qingcloud-cni"
MAX_BYTES = 8 * 1024 * 1024  # of a configuration or an answer
BLANKS = " \t\r\n"
ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
ID_CHARS = ALNUM | frozenset("_.-")


class Refusal(Exception):
    """An error object of the CNI specification, section 5."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class Unheard(Refusal):
    """No answer of an agent's own came: it is away, silent, broke off, or somebody else has its place."""


class Request:
    """What the runtime asks; *version* answers in errors until the configuration has been read."""

    version = NEWEST
    verb = ""
    container_id = ""
    netns = ""
    ifname = ""
    stdin = b""
    network = ""
    address = ""  # the agent's, as written
    place: "tuple[str, int] | str" = ""  # the same as a socket takes it: a path, or host and port
    instance_id = ""  # of the agent's host, where it is told
    spool = ""

    def __init__(self) -> None:
        self.uptime = clock_gettime(CLOCK_BOOTTIME)  # seconds since the host booted, when this was asked
        self.deadline = monotonic()  # until which the agent is waited for
        self.seconds = 0.0  # for the whole request
        self.config: dict[str, object] = {}
        self.args: dict[str, object] = {}


# --- JSON without the json package: its import alone would double the start ---------------------------


class Scanning:
    """What `json.decoder.JSONDecoder` hands to the scanner in C."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> None:  # NaN, Infinity: Python's, not JSON's
        raise ValueError(name)


def decode(data: bytes) -> object:
    """The JSON value *data* holds; ValueError says what is wrong with it."""
    text = data.decode("utf-8").strip(BLANKS)
    try:
        from _json import make_scanner

        value, end = make_scanner(Scanning)(text, 0)  # type: ignore[arg-type]
        if end == len(text):
            return value
    except Exception:  # noqa: BLE001, S110 - StopIteration, or SystemError for want of json.decoder: not JSON
        pass
    import json  # slow, but it says where the fault lies, and it is there where _json is not

    try:
        return json.loads(text, parse_constant=Scanning.parse_constant)
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


def pick(mapping: "dict[str, object]", key: str) -> object:
    """A key's value without regard to case, the last one's as Go programs have it; None where it is absent."""
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
        raise Refusal(4, f"{name} is not UTF-8", repr(value)) from None


def aside(name: str) -> str:
    """A variable on which nothing depends: what cannot be decoded is replaced."""
    return posix.environ.get(name.encode(), b"").decode("utf-8", "replace")


def is_id(text: str) -> bool:
    return text[:1] in ALNUM and ID_CHARS.issuperset(text)


def check_ifname(name: str) -> None:
    fault = ""
    if len(name.encode()) > 15:
        fault = "interface name is too long"
    elif name in {".", ".."}:
        fault = "interface name is . or .."
    elif any(char in "/:%" or char.isspace() or char < " " or char == "\x7f" for char in name):
        fault = "interface name contains / : % or a blank"  # the kernel would expand eth%d
    if fault:
        raise Refusal(4, fault, f"CNI_IFNAME={name!r}")


def read_variables(request: Request) -> None:
    request.verb = variable("CNI_COMMAND")
    if request.verb == "VERSION":
        return
    request.container_id = variable("CNI_CONTAINERID")
    request.netns = variable("CNI_NETNS")
    request.ifname = variable("CNI_IFNAME")
    if request.container_id and not is_id(request.container_id):
        raise Refusal(4, "invalid characters in containerID", f"CNI_CONTAINERID={request.container_id!r}")
    if request.ifname:
        check_ifname(request.ifname)
    if not request.verb:
        needed: tuple[str, ...] = ("CNI_COMMAND",)
    else:
        needed = VERBS[request.verb][0] if request.verb in VERBS else ()
    missing = [name for name in needed if not variable(name)]
    if missing:
        raise Refusal(4, f"required env variables [{','.join(missing)}] missing")


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
            raise Refusal(6, f"the network configuration is larger than {MAX_BYTES} bytes")


def read_config(request: Request) -> None:
    """Read and judge stdin in the order in which the reference library does."""
    try:
        request.stdin = read_stdin()
    except OSError as err:
        raise Refusal(5, "stdin cannot be read", reason(err)) from None
    try:
        config = decode(request.stdin)
    except ValueError as err:
        raise Refusal(6, "the network configuration is not JSON", str(err)) from None
    if not isinstance(config, dict):
        raise Refusal(6, "the network configuration is not a JSON object")
    request.config = config
    version = pick(config, "cniVersion")
    if isinstance(version, str) and version in VERSIONS:
        request.version = version
    name = pick(config, "name")
    if not name:
        raise Refusal(7, "missing network name", 'the network configuration needs one, such as "name": "mynet"')
    if not isinstance(name, str) or not is_id(name):
        raise Refusal(7, "invalid characters found in network name", f"name={name!r}")
    request.network = name
    if request.verb not in VERBS:
        raise Refusal(4, f"unknown CNI_COMMAND: {request.verb}")
    if version is None or version == "":
        request.version = version = OLDEST
    if not isinstance(version, str):
        raise Refusal(6, "cniVersion is not a string")
    if version not in VERSIONS:
        raise Refusal(1, "incompatible CNI versions", f"config is {version!r}, plugin supports {', '.join(VERSIONS)}")
    if request.verb not in VERSIONS[version]:
        raise Refusal(1, f"config version does not allow {request.verb}", f"cniVersion is {version}")
    if request.verb == "CHECK" and pick(config, "prevResult") is None:
        raise Refusal(7, "required prevResult missing", "CHECK compares with what ADD answered")


def read_args(request: Request) -> None:
    args = pick(request.config, "args")
    if args is not None and not isinstance(args, dict):
        raise Refusal(7, "args must be an object", f"args={args!r}")
    request.args = args or {}
    seconds = VERBS[request.verb][1]
    limit = pick(request.args, "TimeoutSeconds")
    if limit is not None:
        if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not limit > 0:
            raise Refusal(7, "args.TimeoutSeconds must be a number of seconds above 0", repr(limit))
        seconds = min(seconds, limit)
    request.seconds = seconds
    request.instance_id = text_arg(request.args, "InstanceID")
    if not request.instance_id.isprintable():
        raise Refusal(7, "InstanceID must be an instance's id", repr(request.instance_id))
    request.deadline += seconds - min(LAST, seconds / 10)


def text_arg(mapping: "dict[str, object]", key: str) -> str:
    value = pick(mapping, key)
    if value is not None and not isinstance(value, str):
        raise Refusal(7, f"{key} must be text", repr(value))
    return value or ""


def is_path(text: str) -> bool:
    return text[:1] == "/" and text.isprintable()  # halves of a surrogate pair are not printable


# --- the agent -----------------------------------------------------------------------------------------


def reason(err: OSError) -> str:
    if err.errno == 2:
        return "it does not exist"  # the system's own words would make containerd take a failed DEL for a success
    return posix.strerror(err.errno).lower() if err.errno else str(err)


def find_agent(request: Request) -> None:
    address = text_arg(request.args, "BindAddr") or text_arg(request.config, "bindaddr")
    request.address = address = address or f"unix://{RUN_DIR}/agent.sock"
    if address.startswith("unix://"):
        path = address[7:]
        if not is_path(path):
            raise Refusal(7, "BindAddr must name an absolute path after unix://", address)
        if len(path.encode()) > 107:
            raise Refusal(7, "BindAddr names a socket path longer than 107 bytes", address)
        request.place = path
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise Refusal(7, "BindAddr must be host:port or unix:///path", address)
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
        family = net.AF_INET6
        host = "::1" if host == "::" else host
    else:
        family = net.AF_INET
        host = "127.0.0.1" if host in {"", "0.0.0.0", "localhost"} else host  # noqa: S104 - the agent's, not ours
    try:
        net.inet_pton(family, host)
    except (OSError, ValueError):
        raise Refusal(7, "the host in BindAddr must be an IP address or localhost", address) from None
    request.place = (host, int(port))


def read_token(request: Request) -> str:
    path = text_arg(request.args, "TokenFile") or f"{RUN_DIR}/token"
    named = f"token file {path}"
    try:
        file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        try:
            info = posix.fstat(file)
            token = posix.read(file, 4097).strip()
        finally:
            posix.close(file)
    except (OSError, ValueError) as err:
        raise Refusal(7, f"{named} cannot be read", reason(err) if isinstance(err, OSError) else str(err)) from None
    if info.st_uid != 0:
        raise Refusal(7, f"{named} is refused: it belongs to user {info.st_uid}, not to root")
    if info.st_mode & 0o077:
        raise Refusal(7, f"{named} is refused: others than root may use it (mode {info.st_mode & 0o7777:04o})")
    if not token or len(token) > 4096 or not all(33 <= byte <= 126 for byte in token):
        raise Refusal(7, f"{named} is refused: it holds no token")
    return token.decode("ascii")


def exchange(request: Request) -> "tuple[int, bytes]":
    """Send the request once; status and body of the answer."""
    place = request.place
    family = net.AF_UNIX if isinstance(place, str) else net.AF_INET6 if ":" in place[0] else net.AF_INET
    sock = net.socket(family, net.SOCK_STREAM | net.SOCK_CLOEXEC)
    try:
        connect(request, sock)
        message = compose(request, "" if isinstance(place, str) else read_token(request))
        sock.settimeout(rest(request))  # of which connecting may have taken some
        try:
            sock.sendall(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have refused before reading all, and said why
        return receive(request, sock)
    except TimeoutError:
        raise silence(request) from None
    except OSError as err:
        raise unheard(request, "broke off", reason(err)) from None


def unheard(request: Request, told: str, details: str = "") -> Unheard:
    return Unheard(11, f"agent at {request.address} {told}", details)


def silence(request: Request) -> Unheard:
    return unheard(request, f"gave no answer within {request.seconds:g} s")


def connect(request: Request, sock: net.socket) -> None:
    while True:
        sock.settimeout(rest(request))
        try:
            return sock.connect(request.place)
        except BlockingIOError:  # a unix socket whose queue is full for the moment
            sleep(0.01)
        except TimeoutError:
            raise
        except OSError as err:
            raise unheard(request, f"cannot be reached: {reason(err)}; is qingagent running?") from None


def rest(request: Request) -> float:
    seconds = request.deadline - monotonic()
    if seconds <= 0:
        raise silence(request)
    return seconds


def compose(request: Request, token: str) -> bytes:
    content = payload(request, rest(request))
    head = "POST /v1/cni HTTP/1.1\r\nHost: qingagent\r\nConnection: close\r\nContent-Type: application/json\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def payload(request: Request, seconds: float) -> bytes:
    """What the agent is asked, with *seconds* left for its answer to arrive."""
    body = members((
        ("command", request.verb),
        ("containerID", request.container_id),
        ("netns", request.netns),
        ("ifname", request.ifname),
        ("args", aside("CNI_ARGS")),
        ("path", aside("CNI_PATH")),
    ))  # fmt: skip
    body += f'"timeout":{max(seconds - SPARE, seconds / 2):.3f},"config":'
    return b"{" + body.encode() + request.stdin + b"}"


def receive(request: Request, sock: net.socket) -> "tuple[int, bytes]":
    """Status and body of the answer; whatever is not a whole answer in HTTP is refused."""
    data = head = b""
    length = -1  # of the whole answer, once its head says so
    while length < 0 or len(data) < length:
        sock.settimeout(rest(request))
        chunk = sock.recv(65536)
        data += chunk
        if data[:7] != b"HTTP/1."[: len(data)]:
            raise unheard(request, "does not answer in HTTP: it is no qingagent")
        if not chunk:
            told = f"broke off its answer after {len(data)} bytes" if data else "closed the connection unanswered"
            raise unheard(request, told)
        if len(data) > MAX_BYTES:
            raise unheard(request, f"answers more than {MAX_BYTES} bytes: it is no qingagent")
        if length < 0 and b"\r\n\r\n" in data:
            head = data[: data.index(b"\r\n\r\n") + 4]
            length = len(head) + body_length(request, head)
    return int(head[9:12]), data[len(head) : length]


def body_length(request: Request, head: bytes) -> int:
    lines = head.split(b"\r\n")
    if lines[0][8:9] == b" " and lines[0][9:12].isdigit() and lines[0][12:13] in {b" ", b""}:
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length" and value.strip().isdigit() and len(value) < 20:
                return int(value)
    raise unheard(request, "does not answer as qingagent does")


def carry(request: Request) -> bytes:
    """What the agent answers, to be printed: a result for ADD, nothing for the other verbs."""
    status, body = exchange(request)
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
            raise Refusal(int(code), msg, details if isinstance(details, str) else "")
    raise unheard(request, f"answered HTTP {status} with something else than a CNI answer")


# --- a DEL that the agent does later -------------------------------------------------------------------


def find_spool(request: Request) -> str:
    """The directory, which the agent has beside its socket."""
    directory = text_arg(request.args, "SpoolDir")
    if directory and not is_path(directory):
        raise Refusal(7, "SpoolDir must name an absolute path", directory)
    if directory or not isinstance(request.place, str):
        return directory or f"{RUN_DIR}/spool"
    return request.place.rpartition("/")[0] + "/spool"


def keep(request: Request, cause: Unheard) -> None:
    """Leave the DEL to the agent as a file, which replaces that of an earlier DEL of the same attachment."""
    from hashlib import sha256  # slow, but the agent is away

    key = (("network", request.network), ("containerID", request.container_id), ("ifname", request.ifname))
    name = sha256("\0".join(value for _, value in key).encode()).hexdigest() + ".json"
    lost = f"the release cannot be kept in {request.spool}"
    try:
        meant = (("address", request.address), ("instanceID", request.instance_id), ("bootID", read_boot_id()))
        head = members(meant + key) + f'"uptime":{request.uptime:.6f},"request":'
        content = b"{" + head.encode() + payload(request, VERBS["DEL"][1]) + b"}\n"
        make_directory(request.spool)
        info = posix.stat(request.spool)
        if info.st_uid != 0 or info.st_mode & 0o022:
            raise Refusal(11, f"{cause.msg}; {lost}", "others than root may write there")
        write_file(request.spool, name, content)
    except OSError as err:
        raise Refusal(11, f"{cause.msg}; {lost}", reason(err)) from None
    note = f"qingcni: {cause.msg}; it finds the release of {request.container_id} in {request.spool}/{name}\n"
    try:
        write_all(2, note.encode())
    except OSError:
        pass


def read_boot_id() -> str:
    """The kernel's id of this boot: uptimes of different boots cannot be compared."""
    file = posix.open("/proc/sys/kernel/random/boot_id", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(file, 100).decode().strip()
    finally:
        posix.close(file)


def make_directory(path: str) -> None:
    place = ""
    for part in path.strip("/").split("/"):
        place += "/" + part
        try:
            posix.mkdir(place, 0o700)
        except FileExistsError:
            pass


def write_file(directory: str, name: str, content: bytes) -> None:
    """Both the whole file and its name are on disk in the end, or nothing is."""
    draft = f"{directory}/.{name}.{posix.urandom(4).hex()}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    file = posix.open(draft, flags, 0o600)
    try:
        try:
            write_all(file, content)
            posix.fsync(file)
        finally:
            posix.close(file)
        posix.rename(draft, f"{directory}/{name}")
    except OSError:
        try:
            posix.unlink(draft)
        except OSError:
            pass
        raise
    file = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        posix.fsync(file)
    finally:
        posix.close(file)


# --- the answer ----------------------------------------------------------------------------------------


def version_answer() -> bytes:
    """VERSION needs no configuration; a supported version in one is repeated."""
    config = None
    try:
        stdin = read_stdin()
        if stdin:
            config = decode(stdin)
    except (OSError, ValueError, Refusal):
        pass
    version = pick(config, "cniVersion") if isinstance(config, dict) else None
    spoken = version if isinstance(version, str) and version in VERSIONS else NEWEST
    versions = ",".join(quote(text) for text in VERSIONS)
    return f'{{"cniVersion":{quote(spoken)},"supportedVersions":[{versions}]}}'.encode()


def answer_to(request: Request) -> bytes:
    read_variables(request)
    if request.verb == "VERSION":
        return version_answer()
    read_config(request)
    read_args(request)
    find_agent(request)
    request.spool = find_spool(request)
    try:
        return carry(request)
    except Unheard as refusal:
        if request.verb == "STATUS":
            raise Refusal(50, refusal.msg, refusal.details) from None  # containers cannot be added
        if request.verb != "DEL":
            raise
        keep(request, refusal)
        return b""


def error_object(version: str, refusal: Refusal) -> bytes:
    details = f',"details":{quote(harmless(refusal.details))}' if refusal.details else ""
    text = f'{{"cniVersion":{quote(version)},"code":{refusal.code},"msg":{quote(harmless(refusal.msg))}{details}}}'
    return text.encode()


def harmless(text: str) -> str:
    """*text* on one line, without the words by which containerd takes a failed DEL for a success (go-cni)."""
    text = text.replace("\n", "\\n")  # of a value that was given
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
    posix._exit(status)  # noqa: SLF001 - public, for all its name


def main() -> None:
    request = Request()
    try:
        finish(0, answer_to(request))
    except Refusal as refusal:
        finish(1, error_object(request.version, refusal))
    except BaseException as err:  # noqa: BLE001 - whatever it is, the runtime gets an error object
        failure = Refusal(999, f"the plugin failed: {type(err).__name__}", str(err))
        finish(1, error_object(request.version, failure))


if __name__ == "__main__":
    main()
