"""GC: which attachments a runtime still has, as it says. Pure."""

from collections.abc import Iterable, Mapping

from qingcloud_cni.core.cni.reading import flag, folded, section, sections, text
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey

KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")  # the second one as in the tag spec-v1.1.0


def is_disabled(config: Mapping[str, object]) -> bool:
    """The operator's own switch: a list-level `disableGC` never reaches a plugin."""
    args = section("args", folded(config).get("args"))
    return flag(args, "DisableGC", default=False, within="args.")


def valid_attachments(config: Mapping[str, object], network: str) -> frozenset[AttachmentKey]:
    """The attachments of *network* that are to stay; null is an empty list, and no list at all InvalidConfig."""
    keys = folded(config)
    key = next((key for key in KEYS if key in keys), None)
    if key is None:
        raise InvalidConfig(f"GC without {KEYS[0]}: nothing says which attachments are valid, so nothing is freed")
    found = set()
    for n, entry in enumerate(sections(key, keys[key])):
        container_id, ifname = (text(f"{key}[{n}].{k}", entry.get(k.lower())) for k in ("containerID", "ifname"))
        if not (container_id and ifname):
            raise InvalidConfig(f"{key}[{n}] names not both containerID and ifname, so nothing is freed")
        found.add(AttachmentKey(network, container_id, ifname))
    return frozenset(found)


def unlisted(
    attachments: Iterable[Attachment], network: str, valid: frozenset[AttachmentKey]
) -> tuple[Attachment, ...]:
    """Attachments of this network that the runtime did not name. Not yet a reason to free them."""
    return tuple(a for a in attachments if a.key.network == network and a.key not in valid)
