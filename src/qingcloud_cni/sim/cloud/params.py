"""The flattened parameters of a call, read as the cloud reads them: empty values count as absent."""

from collections.abc import Mapping

from qingcloud_cni.sim.cloud import refusals

DEFAULT_PAGE = 20
MAX_PAGE = 100  # whatever is asked


class Params:
    """Typed reading of ``nics.2=b&nics.1=a&count=3``; raises Refusal 1100 where a value is malformed."""

    def __init__(self, wire: Mapping[str, str]) -> None:
        self._wire = wire

    def text(self, name: str) -> str:
        return self._wire.get(name, "").strip()

    def needed(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise refusals.missing(name)
        return value

    def number(self, name: str, default: int) -> int:
        value = self.text(name)
        return _integer(name, value) if value else default

    def has(self, name: str) -> bool:
        """Whether there is a value or a list item of this name."""
        return bool(self.text(name) or self.listed(name))

    def listed(self, name: str) -> tuple[str, ...]:
        """The items of ``name.n`` by number, whatever the first number; empty items and repetitions are dropped."""
        items: dict[int, str] = {}
        for key, value in self._wire.items():
            stem, dot, index = key.rpartition(".")
            if dot and stem == name and index.isascii() and index.isdigit():
                items[int(index)] = value.strip()
        return tuple(dict.fromkeys(items[n] for n in sorted(items) if items[n]))

    def needed_list(self, name: str) -> tuple[str, ...]:
        items = self.listed(name)
        if not items:
            raise refusals.missing(f"{name}.1")
        return items

    def choices(self, name: str) -> tuple[str, ...]:
        """A filter that clients send as one value or as a list."""
        value = self.text(name)
        return self.listed(name) or ((value,) if value else ())

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(_integer(name, value) for value in self.choices(name))

    def page(self) -> slice:
        """The part of a list that offset and limit ask for; beyond the end it is empty."""
        offset = self.number("offset", 0)
        limit = self.number("limit", DEFAULT_PAGE)
        if offset < 0 or limit < 0:
            raise refusals.malformed("offset" if offset < 0 else "limit", str(min(offset, limit)), "a natural number")
        return slice(offset, offset + min(limit, MAX_PAGE))


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise refusals.malformed(name, value, "an integer") from None
