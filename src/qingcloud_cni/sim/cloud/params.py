"""The flattened parameters of a call; the cloud treats empty values as absent."""

from collections.abc import Mapping

from qingcloud_cni.sim.cloud import errors

DEFAULT_PAGE = 20
MAX_PAGE = 100  # for any larger limit too


class Params:
    """Typed reading of ``nics.2=b&nics.1=a&count=3``; ApiError 1100 if a value is malformed."""

    def __init__(self, wire: Mapping[str, str]) -> None:
        self._wire = wire

    def text(self, name: str) -> str:
        return self._wire.get(name, "").strip()

    def required(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise errors.missing(name)
        return value

    def number(self, name: str, default: int) -> int:
        value = self.text(name)
        return _integer(name, value) if value else default

    def has(self, name: str) -> bool:
        """Whether there is a value or a list item of this name."""
        return bool(self.text(name) or self.values(name))

    def values(self, name: str) -> tuple[str, ...]:
        """The items of ``name.n`` by number, from any first number, without empty and repeated ones."""
        items: dict[int, str] = {}
        for key, value in self._wire.items():
            stem, dot, index = key.rpartition(".")
            if dot and stem == name and index.isascii() and index.isdigit():
                items[int(index)] = value.strip()
        return tuple(dict.fromkeys(items[n] for n in sorted(items) if items[n]))

    def required_list(self, name: str) -> tuple[str, ...]:
        items = self.values(name)
        if not items:
            raise errors.missing(f"{name}.1")
        return items

    def choices(self, name: str) -> tuple[str, ...]:
        """A filter, which clients send as one value or as a list."""
        value = self.text(name)
        return self.values(name) or ((value,) if value else ())

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(_integer(name, value) for value in self.choices(name))

    def page(self) -> slice:
        """The part of a list for offset and limit; empty beyond the end."""
        offset = self.number("offset", 0)
        limit = self.number("limit", DEFAULT_PAGE)
        if offset < 0 or limit < 0:
            raise errors.malformed("offset" if offset < 0 else "limit", str(min(offset, limit)), "a natural number")
        return slice(offset, offset + min(limit, MAX_PAGE))


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise errors.malformed(name, value, "an integer") from None
