"""The formats of the config file: a function for each, from its text to keys and values.

Pairs come in the file's order, and a key may occur twice. A value is a str, bool, int, None for "not given", or a
list of these; a format without types has texts only. {} stands for anything nested deeper: the file is flat.
"""

import configparser
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NoReturn
from xml.parsers import expat

from qingcloud_cni.core.flat_yaml import YamlFault, read_flat_yaml

Pairs = list[tuple[str, object]]

SECTION = "QingAgent"  # the only one an INI file may have
_NO_KEYS = "expected keys and values, such as "
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}  # in properties; any other character stands for itself
_PROPERTY = re.compile(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)


class FormatError(ValueError):
    """The text is not of its format; the message has the line and the cause."""


def _no_constant(word: str) -> NoReturn:
    raise FormatError(f"{word} is not JSON")


def yaml_pairs(text: str) -> Pairs:
    try:
        pairs = read_flat_yaml(text)
    except YamlFault as err:
        raise FormatError(str(err)) from err
    if pairs is None:
        raise FormatError(_NO_KEYS + "`zone: pek3a`")
    return pairs


class _Object(tuple[tuple[str, object], ...]):
    """The pairs of a JSON object."""

    __slots__ = ()


def json_pairs(text: str) -> Pairs:
    """Numbers stay text, so that nothing is rounded and 1e3 is not read as 1000."""
    try:
        content = json.loads(
            text, object_pairs_hook=_Object, parse_int=str, parse_float=str, parse_constant=_no_constant
        )
    except json.JSONDecodeError as err:
        raise FormatError(f"line {err.lineno}, column {err.colno}: {err.msg}") from err
    if not isinstance(content, _Object):
        raise FormatError(_NO_KEYS + '`{"zone": "pek3a"}`')
    return [(key, _flat(value)) for key, value in content]


def toml_pairs(text: str) -> Pairs:
    try:
        content = tomllib.loads(text, parse_float=str)
    except tomllib.TOMLDecodeError as err:
        raise FormatError(str(err)) from err
    return [(key, _flat(value)) for key, value in content.items()]


def _flat(value: object) -> object:
    match value:
        case list():
            return [{} if isinstance(item, list | _Object | dict) else item for item in value]
        case dict() | _Object():
            return {}
        case str() | int() | None:
            return value
        case _:
            return str(value)  # dates and times of TOML


def xml_pairs(text: str) -> Pairs:
    """Any root; an element is a key, a repeated one a list. DOCTYPE, entities and attributes are rejected."""
    reader = _XmlReader()
    try:
        reader.parser.Parse(text.encode(), True)
    except expat.ExpatError as err:
        raise FormatError(f"line {err.lineno}, column {err.offset + 1}: {expat.ErrorString(err.code)}") from err
    return [(name, values[0] if len(values) == 1 else values) for name, values in reader.found.values()]


class _XmlReader:
    def __init__(self) -> None:
        self.found: dict[str, tuple[str, list[object]]] = {}  # by key in lower case: its spelling, its values
        self._path: list[str] = []
        self._text = ""
        self._is_nested = False
        self.parser = expat.ParserCreate("utf-8")  # whatever the declaration says: the text has been decoded
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._data
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        for attribute in attributes:
            if self._path or not attribute.startswith(("xmlns", "xsi:")):  # a schema's on the root are ignored
                raise self._error(f"element {name} has attribute {attribute!r}; write values between the tags")
        self._path.append(name)
        if len(self._path) == 2:
            self._text, self._is_nested = "", False
        self._is_nested |= len(self._path) > 2

    def _end(self, name: str) -> None:
        self._path.pop()
        if len(self._path) == 1:
            value: object = {} if self._is_nested else self._text.strip()
            self.found.setdefault(name.lower(), (name, []))[1].append(value)

    def _data(self, text: str) -> None:
        if len(self._path) == 1 and text.strip():
            raise self._error("text outside of a key's element, such as <zone>pek3a</zone>")
        self._text += text

    def _refuse(self, *_declared: object) -> NoReturn:
        raise self._error("DOCTYPE and entity declarations are rejected; write the values out")

    def _error(self, words: str) -> FormatError:
        return FormatError(f"line {self.parser.CurrentLineNumber}: {words}")


def ini_pairs(text: str) -> Pairs:
    """Keys of the section [QingAgent], or of a file without sections. Quotes around a whole value are removed."""
    shift = 0
    try:
        try:
            found = _ini(text)
        except configparser.MissingSectionHeaderError:
            shift = 1  # line: the section header that is added
            found = _ini(f"[{SECTION}]\n{text}")
    except configparser.DuplicateOptionError as err:
        raise FormatError(f"line {(err.lineno or 0) - shift}: key {err.option!r} is given twice") from err
    except configparser.DuplicateSectionError as err:
        raise FormatError(
            f"line {(err.lineno or 0) - shift}: section [{err.section}] begins after keys; move all keys into it"
        ) from err
    except configparser.ParsingError as err:
        raise FormatError(f"line {err.errors[0][0] - shift} is not `key = value`") from err
    sections = found.sections()
    other = next((name for name in sections if name.lower() != SECTION.lower()), None)
    if other is not None or len(sections) > 1:
        raise FormatError(f"section [{other or sections[1]}]: only [{SECTION}], or no section, is allowed")
    return [(key, _unquoted(value)) for name in sections for key, value in found.items(name, raw=True)]


def _ini(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(default_section="\0", empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their spelling for messages
    parser.read_string(text)
    return parser


def _unquoted(value: str) -> str:
    match = _QUOTED.fullmatch(value)
    return match[2] if match else value


def properties_pairs(text: str) -> Pairs:
    """As java.util.Properties: `key = value`, `key: value`, `key value`; escapes; lines continued by a backslash."""
    pairs: Pairs = []
    for number, line in _logical_lines(text):
        match = _PROPERTY.fullmatch(line)
        if match is None or not match[1]:
            raise FormatError(f"line {number} is not `key = value`")
        key, value = (_unescaped(part, number) for part in match.groups())
        pairs.append((key, value))
    return pairs


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without blanks and comments, joined where a backslash ends one; with the number of the first."""
    whole, begin = "", 0
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.lstrip(" \t\f")
        if not whole:
            begin = number
            if not line or line[0] in "#!":
                continue
        is_open = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        whole += line[:-1] if is_open else line
        if not is_open:
            yield begin, whole
            whole = ""
    if whole:
        yield begin, whole


def _unescaped(text: str, number: int) -> str:
    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2] == "u":
            raise FormatError(f"line {number}: \\u needs four hexadecimal digits")
        return _ESCAPES.get(match[2], match[2])

    return _ESCAPE.sub(replaced, text).strip()


FORMATS: Mapping[str, Callable[[str], Pairs]] = MappingProxyType(
    {  # by the end of the file's name, in the order in which files are looked for
        ".yaml": yaml_pairs,
        ".yml": yaml_pairs,
        ".json": json_pairs,
        ".toml": toml_pairs,
        ".xml": xml_pairs,
        ".ini": ini_pairs,
        ".properties": properties_pairs,
    }
)
