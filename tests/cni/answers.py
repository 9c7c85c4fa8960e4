"""What the plugin answered, held to what must hold of every answer. For tests."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cni.results import OLD, VERSIONS, decode

BEFORE_CONFIG = {4, 5, 6}  # codes of refusals before the version of the request was read
TAKEN_FOR_SUCCESS = ("not found", "no such file")  # of a DEL that failed, by containerd and Nomad (go-cni)


@dataclass(frozen=True)
class Answer:
    """Exit status, stdout as it came, how long it took, and what a spooled DEL says on stderr."""

    status: int
    stdout: bytes
    seconds: float
    note: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that stdout is."""
        return _read(self.stdout)

    @property
    def result(self) -> dict[str, Any]:
        """The result of an ADD that succeeded."""
        assert self.status == 0, self
        return self.json

    @property
    def code(self) -> int:
        """The code of the error object; 0 where the request succeeded."""
        return int(self.json["code"]) if self.status else 0

    @property
    def message(self) -> str:
        """What an error object says in all."""
        return f"{self.json['msg']} {self.json.get('details', '')}"

    def succeeded(self) -> "Answer":
        assert self.status == 0, self
        return self

    def refused(self, code: int, *words: str) -> "Answer":
        """It failed with this code, and says these words."""
        assert self.code == code, self
        assert all(word in self.message for word in words), (words, self)
        return self

    def check_error(self, version: str) -> None:
        """A failure is one error object, in the request's *version*, that says something.

        A test must check the words itself.
        """
        error = error_object(self.status, self.stdout)
        assert len(self.message.split()) > 3, self
        is_early = error["code"] in BEFORE_CONFIG and error["cniVersion"] == VERSIONS[-1]
        assert is_early or error["cniVersion"] == version, self

    def check_result(self, version: str, ifname: str, sandbox: str) -> None:
        """A success of ADD is one result of *version*, with nothing that this version has not, and the interface.

        What it says must be compared with kernel and cloud by a test.
        """
        result = self.json
        assert result.get("cniVersion") == version, self
        assert _filled(decode(result, version)) == _filled(result), self
        if version in OLD:
            return
        interfaces = result["interfaces"]
        (ours,) = (n for n, i in enumerate(interfaces) if (i["name"], i.get("sandbox")) == (ifname, sandbox))
        assert interfaces[ours]["mac"], self
        assert ours in [ip.get("interface") for ip in result["ips"]], self
        assert all(ip.get("interface", 0) in range(len(interfaces)) for ip in result["ips"]), self
        if version != VERSIONS[-1]:
            assert not any(interface.keys() - {"name", "mac", "sandbox"} for interface in interfaces), self
            assert not any(route.keys() - {"dst", "gw"} for route in result["routes"]), self


def error_object(status: int, stdout: bytes) -> dict[str, Any]:
    """What a plugin that failed says: one object as the specification wants it (section 5), and exit status 1."""
    error = _read(stdout)
    assert status == 1, error
    assert error.keys() <= {"cniVersion", "code", "msg", "details"}, error
    assert error["cniVersion"] in VERSIONS, error
    assert type(error["code"]) is int, error
    assert error["code"] > 0, error
    for text in (error["msg"], error.get("details", "unsaid")):
        assert isinstance(text, str), error
        assert text.strip(), error
        assert "\n" not in text, error
        assert "Traceback" not in text, error
        assert not any(words in text.lower() for words in TAKEN_FOR_SUCCESS), error
    return error


def execute(argv: Sequence[str], environment: Mapping[str, str], stdin: bytes) -> Answer:
    """Run the plugin to its end, and check its answer as every runtime would."""
    begun = time.monotonic()
    done = subprocess.run(argv, env=environment, input=stdin, capture_output=True, timeout=120, check=False)
    answer = Answer(done.returncode, done.stdout, time.monotonic() - begun, done.stderr.decode())
    place = (environment.get("CNI_IFNAME", ""), environment.get("CNI_NETNS", ""))
    return checked(answer, environment.get("CNI_COMMAND"), _version(stdin), *place)


def checked(answer: Answer, verb: str | None, version: str, ifname: str, sandbox: str) -> Answer:
    """The same answer, which is as every one to *verb* must be."""
    assert not answer.note or (verb == "DEL" and not answer.status), answer
    if answer.status:
        answer.check_error(version)
    elif verb == "ADD":
        answer.check_result(version, ifname, sandbox)
    elif verb != "VERSION":
        assert answer.stdout == b"", answer
    return answer


def _filled(value: Any) -> Any:
    """*value* without what is empty: a list or an object may be left out instead."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item not in ([], {})}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def _version(stdin: bytes) -> str:
    """The version in which a request is to be answered: the newest where its own cannot be read or is unknown."""
    try:
        keys = {key.lower(): value for key, value in json.loads(stdin).items()}
    except (ValueError, AttributeError, RecursionError):
        return VERSIONS[-1]
    version = keys.get("cniversion") or VERSIONS[0]
    return version if version in VERSIONS else VERSIONS[-1]


def _read(stdout: bytes) -> dict[str, Any]:
    document = json.loads(stdout.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_once)
    assert isinstance(document, dict), document
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    assert len(document) == len(pairs), f"a key twice: {pairs}"
    return document
