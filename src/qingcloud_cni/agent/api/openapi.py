"""GET /v1/openapi.json: the agent's API described from the very types it answers with."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from qingcloud_cni import __version__
from qingcloud_cni.agent.api.views import Count
from qingcloud_cni.core.errors import WIRE

_JSON = "application/json"

_ABOUT = """\
The API of one host's agent, for that host alone. On the unix socket the agent serves root. On TCP every path below
/v1 needs a connection from this host, and a signature made with the token of the agent's run directory and a
challenge; otherwise the agent answers 403.
"""
_SIGNATURE = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "required on TCP: `Qingcni`, the SHA-256 of the body, and the seal of the request",
}


class CniError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error object of the CNI specification."""

    cni_version: str = msgspec.field(name="cniVersion")
    code: Annotated[int, Meta(gt=0)]
    msg: Annotated[str, Meta(min_length=1)]
    details: str = ""


class CniRoute(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    dst: str
    gw: str = ""


class CniDetailedRoute(CniRoute, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Ours have no details; those of a `prevResult` may."""

    mtu: Count | None = None
    advmss: Count | None = None
    priority: Count | None = None
    table: Count | None = None
    scope: Count | None = None


class CniDns(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    nameservers: list[str] = []
    domain: str = ""
    search: list[str] = []
    options: list[str] = []


class CniInterface(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    mac: str = ""
    sandbox: str = ""


class CniDetailedInterface(CniInterface, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    mtu: Count | None = None
    socket_path: str = msgspec.field(default="", name="socketPath")
    pci_id: str = msgspec.field(default="", name="pciID")


class CniAddress(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    address: str
    gateway: str = ""
    interface: Annotated[Count | None, Meta(description="index in `interfaces`")] = None


class CniFamilyAddress(CniAddress, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[str, Meta(pattern="^[46]$")]


class CniResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ADD answers in the version 1.1.0."""

    cni_version: Annotated[str, Meta(pattern=r"^1\.1\.0$")] = msgspec.field(name="cniVersion")
    interfaces: list[CniDetailedInterface]
    ips: list[CniAddress]
    routes: list[CniDetailedRoute]
    dns: CniDns


class CniPlainResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ADD answers in the version 1.0.0."""

    cni_version: Annotated[str, Meta(pattern=r"^1\.0\.0$")] = msgspec.field(name="cniVersion")
    interfaces: list[CniInterface]
    ips: list[CniAddress]
    routes: list[CniRoute]
    dns: CniDns


class CniFamilyResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ADD answers in the versions 0.3.0 to 0.4.0."""

    cni_version: Annotated[str, Meta(pattern=r"^0\.(3\.[01]|4\.0)$")] = msgspec.field(name="cniVersion")
    interfaces: list[CniInterface]
    ips: list[CniFamilyAddress]
    routes: list[CniRoute]
    dns: CniDns


class CniHalf(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    ip: str
    gateway: str = ""
    routes: list[CniRoute] = []


class CniEarlyResult(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What ADD answers in the versions 0.1.0 and 0.2.0."""

    cni_version: Annotated[str, Meta(pattern=r"^0\.[12]\.0$")] = msgspec.field(name="cniVersion")
    ip4: CniHalf | None = None
    ip6: CniHalf | None = None
    dns: CniDns = CniDns()


@dataclass(frozen=True, slots=True)
class Answer:
    """*kinds* are the types it may be of, in JSON; none for text."""

    meaning: str
    kinds: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method of a path, as OpenAPI describes it."""

    summary: str
    details: str = ""  # whole sentences
    answers: Mapping[int, Answer]  # by status
    asks: type | None = None  # of the request's body
    query: type | None = None  # a struct whose fields are the parameters
    is_open: bool = False  # to everybody who can connect; else the access guard decides
    is_local: bool = False  # to everybody on this host


CNI_ANSWERS: Mapping[int, Answer] = MappingProxyType(
    {
        200: Answer(
            "ADD: the result, in the shape of the configuration's cniVersion. All others: an empty body.",
            (CniResult, CniPlainResult, CniFamilyResult, CniEarlyResult),
        ),
        **{
            status: Answer("an error object; its code says more than the status", (CniError,))
            for _, status in WIRE.values()
        },
    }
)


def document(operations: Mapping[tuple[str, str], Operation]) -> dict[str, object]:
    """The API in OpenAPI 3.1, by method and path; its schemas are of JSON Schema 2020-12."""
    kinds: list[object] = [CniError]
    for operation in operations.values():
        kinds += [operation.asks] if operation.asks is not None else []
        kinds += [kind for answer in operation.answers.values() for kind in answer.kinds]
    schemas, components = msgspec.json.schema_components(
        kinds, schema_hook=_anything, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, object]] = {}
    for (method, path), operation in operations.items():
        paths.setdefault(path, {})[method] = _described(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qingagent", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"signature": _SIGNATURE},
        },
    }


def _described(operation: Operation, schema_of: Mapping[str, object]) -> dict[str, object]:
    answers = dict(operation.answers)
    if not operation.is_open:
        answers[403] = Answer("access denied", (CniError,))
    described: dict[str, object] = {
        "summary": operation.summary,
        "security": [] if operation.is_open or operation.is_local else [{"signature": []}],
        "responses": {str(status): _response(answers[status], schema_of) for status in sorted(answers)},
    }
    if operation.details:
        described["description"] = operation.details
    if operation.query is not None:
        described["parameters"] = _parameters(operation.query)
    if operation.asks is not None:
        content = {_JSON: {"schema": schema_of[repr(operation.asks)]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameters(query: type) -> list[dict[str, object]]:
    """The fields of a struct, each as a parameter of its own."""
    schema = msgspec.json.schema_components([query])[1][query.__name__]
    return [
        {"name": name, "in": "query", "description": field.pop("description"), "schema": field}
        for name, field in schema["properties"].items()
    ]


def _response(answer: Answer, schema_of: Mapping[str, object]) -> dict[str, object]:
    if not answer.kinds:
        content: dict[str, object] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        schemas = [schema_of[repr(kind)] for kind in answer.kinds]
        content = {_JSON: {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}}}
    return {"description": answer.meaning or "as the schema says", "content": content}


def _anything(kind: type) -> dict[str, object]:
    """The schema of what msgspec has none for: `object` is any JSON."""
    assert kind is object, kind
    return {"description": "any JSON"}
