"""The config file in all its formats: they say the same, or are refused in one sentence that names file and place."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.agent.settings.config_file import LARGEST, read_config
from qingcloud_cni.agent.settings.config_formats import FORMATS, FormatError
from qingcloud_cni.agent.settings.resolution import Resolved, resolve
from qingcloud_cni.agent.settings.settings import SETTINGS
from qingcloud_cni.core.errors import StartRefused

Content = Mapping[str, str | list[str]]

EVERY_SETTING: dict[str, str | list[str]] = {  # each unlike its default
    "QYAccessFilePath": "/etc/other/client.yaml",
    "bindaddr": "127.0.0.1:31081",
    "gatewayns": "gw0",
    "iface": "ens3",
    "policy": "RoundRotate",
    "vxnet": ["vxnet-1111aaa", "vxnet-2222bbb"],
    "zone": "sh1a",
    "loglevel": "debug",
    "min-idle": "5",
    "max-idle": "012",
    "idle-ttl": "1h",
    "max-nics": "40",
    "instance-nic-limit": "16",
    "cooldown": "2.5m",
    "cooldown-min": "500ms",
    "api-budget": "40",
    "nic-name-prefix": "pods",
    "metrics-bind": "127.0.0.1:9100",
    "instance-id": "i-1234abcd",
    "instance-id-file": "/etc/other/instance-id",
    "boot-id-file": "/srv/boot-id",
    "state-dir": "/srv/state",
    "run-dir": "/srv/run",
    "duplicate-probe": "off",
    "allow-readable-access-file": "yes",
    "simulator-netns": ["/run/netns/sim-router", "/run/netns/sim-router2"],
}


def as_xml(content: Content) -> str:
    rows = [(key, text) for key, value in content.items() for text in (value if isinstance(value, list) else [value])]
    lines = [f"  <{key}>{escape(text)}</{key}>" for key, text in rows]
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', "<anything>", *lines, "</anything>", ""])


def as_toml(content: Content) -> str:
    """TOML's basic strings and lists have the syntax of JSON's."""
    return "".join(f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in content.items())


def as_ini(content: Content) -> str:
    lines = (f"{key} = {','.join(value) if isinstance(value, list) else value}\n" for key, value in content.items())
    return "[QingAgent]\n" + "".join(lines)


def as_properties(content: Content) -> str:
    def escaped(text: str) -> str:
        return re.sub(r"[\\\s=:#!]", lambda m: f"\\u{ord(m[0]):04x}", text)

    lines = ((key, ",".join(value) if isinstance(value, list) else value) for key, value in content.items())
    return "".join(f"{escaped(key)} = {escaped(value)}\n" for key, value in lines)


WRITERS: dict[str, Callable[[Content], str]] = {
    ".yaml": lambda content: yaml.safe_dump(dict(content), allow_unicode=True),
    ".yml": lambda content: "".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in content.items()
    ),
    ".json": json.dumps,
    ".toml": as_toml,
    ".xml": as_xml,
    ".ini": as_ini,
    ".properties": as_properties,
}
TYPED = (".yaml", ".yml", ".json", ".toml", ".xml")  # those that have lists of their own
each_format = pytest.mark.parametrize("suffix", FORMATS)


def loaded(directory: Path, suffix: str, text: str) -> Resolved:
    path = directory / f"QingAgent{suffix}"
    path.write_text(text, encoding="utf-8")
    return resolve({}, {}, read_config(path), "the file")


def refusal(directory: Path, suffix: str, content: str | bytes) -> str:
    """The sentence, less the file it names."""
    path = directory / f"QingAgent{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StartRefused) as refused:
        read_config(path)
    said = str(refused.value)
    assert str(path) in said
    assert "\n" not in said
    return said.replace(str(path), "F")


# --- all formats say the same ------------------------------------------------------------------------


def test_every_setting_in_every_format_loads_to_the_same_object(tmp_path: Path) -> None:
    assert set(EVERY_SETTING) == {s.name for s in SETTINGS}
    assert set(WRITERS) == set(FORMATS)
    found = {suffix: loaded(tmp_path, suffix, write(EVERY_SETTING)) for suffix, write in WRITERS.items()}
    first = found[".yaml"]
    assert all(other == first for other in found.values())
    defaults = resolve({}, {}, {}, "")
    assert set(first.sources.values()) == {"the file"}
    assert all(getattr(first.settings, s.field) != getattr(defaults.settings, s.field) for s in SETTINGS)
    assert (first.settings.max_idle, first.settings.idle_ttl, first.settings.cooldown_min) == (12, 3600.0, 0.5)


NATIVE = {  # numbers, truths and lists as each format writes them
    ".yaml": "VXNET: [vxnet-1, 'vxnet-2']\nmin-idle: 2\ncooldown: 1.5\nAllow-Readable-Access-File: on\nzone: ~\n",
    ".json": '{"VXNET": ["vxnet-1", "vxnet-2"], "min-idle": 2, "cooldown": 1.5, "Allow-Readable-Access-File": true,'
    ' "zone": null}',
    ".toml": '# none\nVXNET = ["vxnet-1", "vxnet-2"]\nmin-idle = 2\ncooldown = 1.5\n'
    "Allow-Readable-Access-File = true\n",
    ".xml": "<?xml version='1.0' encoding='ISO-8859-1'?><!-- none -->"
    "<c xmlns='urn:c' xmlns:xsi='urn:i' xsi:x='y'><VXNET> vxnet-1 </VXNET>"
    "<min-idle>&#50;</min-idle><vxnet>vxnet-2</vxnet><cooldown><![CDATA[1.5]]></cooldown>"
    "<Allow-Readable-Access-File>on</Allow-Readable-Access-File></c>",
    ".ini": "; none\n# none\nVXNET: 'vxnet-1,vxnet-2'\nmin-idle=2\n\ncooldown = \"1.5\"\n"
    "Allow-Readable-Access-File = on\n",
    ".properties": "! none\n  # none\nVXNET : vxnet-1,\\\n    vxnet-2\nmin-idle\t2\n\ncooldown=1\\u002e5\r\n"
    "Allow-Readable-Access-File on",
}


@pytest.mark.parametrize("suffix", NATIVE)
def test_types_lists_comments_and_spellings_of_each_format(suffix: str, tmp_path: Path) -> None:
    settings = loaded(tmp_path, suffix, NATIVE[suffix]).settings
    assert settings.vxnet == ("vxnet-1", "vxnet-2")
    assert (settings.min_idle, settings.cooldown, settings.allow_readable_access_file) == (2, 1.5, True)
    assert settings.zone == "pek3a"


def test_an_ini_file_may_have_its_section_in_any_case_or_none(tmp_path: Path) -> None:
    for head in ("", "[QingAgent]\n", "[qingagent]\n", "\n# x\n[QINGAGENT]\n"):
        assert loaded(tmp_path, ".ini", f"{head}zone = sh1a\nvxnet = vxnet-1,\n  vxnet-2\n") == resolve(
            {}, {}, {"zone": "sh1a", "vxnet": ["vxnet-1", "vxnet-2"]}, "the file"
        )


@each_format
def test_a_byte_order_mark_is_no_content(suffix: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, suffix, "\ufeff" + WRITERS[suffix]({"zone": "sh1a"})).settings.zone == "sh1a"


@pytest.mark.parametrize(
    ("suffix", "text"),
    [(".yaml", ""), (".yaml", "# nothing\n"), (".yaml", "---\n"), (".yaml", "~"), (".json", "{}"), (".toml", ""),
     (".xml", "<a/>"), (".ini", ""), (".ini", "; x\n"), (".ini", "[QingAgent]"), (".properties", "\n# x\n")],
)  # fmt: skip
def test_an_empty_file_gives_nothing(suffix: str, text: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, suffix, text) == resolve({}, {}, {}, "the file")


@each_format
def test_an_empty_value_is_refused_and_null_is_not_given(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="the file: zone '': rejected"):
        loaded(tmp_path, suffix, WRITERS[suffix]({"zone": ""}))


words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
plain = words.filter(lambda w: "," not in w and w[0] not in "\"'")
keys = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,12}", fullmatch=True).filter(lambda k: k.lower() != "xml")
contents = st.dictionaries(keys, plain | st.lists(plain, min_size=2, max_size=4), max_size=6).filter(
    lambda found: len({key.lower() for key in found}) == len(found)
)


@given(contents)
def test_what_is_written_is_read(content: dict[str, str | list[str]]) -> None:
    for suffix, write in WRITERS.items():
        wanted = {k: ",".join(v) if isinstance(v, list) and suffix not in TYPED else v for k, v in content.items()}
        assert dict(FORMATS[suffix](write(content))) == wanted, suffix


@given(st.sampled_from(sorted(FORMATS)), st.text(max_size=60) | st.text("zone:=<>[]{}\"'\\!&#-\n\t 1", max_size=60))
def test_any_text_is_read_or_refused_in_words(suffix: str, text: str) -> None:
    said = ""
    pairs: list[tuple[str, object]] = []
    try:
        pairs = FORMATS[suffix](text)
    except FormatError as err:
        said = str(err)
    assert all(isinstance(key, str) for key, _ in pairs)
    assert said or pairs == FORMATS[suffix](text)


# --- what YAML 1.1 would take for something else -----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [("max-idle: 012", "max_idle", 12), ("iface: 1e3", "iface", "1e3"), ("iface: 0x10", "iface", "0x10"),
     ("nic-name-prefix: no", "nic_name_prefix", "no"), ("gatewayns: on", "gatewayns", "on")],
)  # fmt: skip
def test_a_plain_word_of_yaml_is_what_is_written(text: str, field: str, value: object, tmp_path: Path) -> None:
    assert getattr(loaded(tmp_path, ".yaml", text).settings, field) == value


@pytest.mark.parametrize("text", ["cooldown: 1:30", "max-nics: 1_0", "max-nics: 0x10", "max-nics: 0o17", "zone: 1.0",
                                  "idle-ttl: 2001-01-01", "max-nics: 1e1", "max-nics: !!int '0b1'"])  # fmt: skip
def test_what_yaml_would_calculate_is_refused_as_it_stands(text: str, tmp_path: Path) -> None:
    key, _, value = text.partition(": ")
    shown = value.removeprefix("!!int ").strip("'")
    with pytest.raises(StartRefused, match=f"the file: {key} '{re.escape(shown)}': rejected: expected"):
        loaded(tmp_path, ".yaml", text)


# --- refused -----------------------------------------------------------------------------------------

DOCTYPE = '<!DOCTYPE a [<!ENTITY z "pek3a">]>\n<a><zone>&z;</zone></a>'
BOMB = "<!DOCTYPE a [" + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9)) + "]><a>&e8;</a>"
REFUSED = [
    (".yaml", "zone: a\niface: [", "F: invalid: line 2, column 9: "),
    (".yaml", "zone: 'a", "F: invalid: line 1, column "),
    (".yaml", "a: 1\nzone: !!python/object:os.system x", "F: invalid: line 2, column 7: the tag "),
    (".yaml", "zone: !x a", "F: invalid: line 1, column 7: the tag '!x' is not supported"),
    (".yaml", "zone: a\n--- \nzone: b", "F: invalid: line 2, column 1: found another document"),
    (".yaml", "? [a]\n: b", "F: invalid: line 1, column 3: a key must be a scalar"),
    (".yaml", "zone: \x01", "F: invalid: character 7: "),
    (".yaml", "[" * 60_000, "F: invalid: "),
    (".yaml", "- zone", "expected keys and values, such as `zone: pek3a`"),
    (".yaml", "zone", "expected keys and values, such as `zone: pek3a`"),
    (".yml", b"a: b\nzone: \xff", "F: invalid: line 2: not UTF-8"),
    (".json", "{", "F: invalid: line 1, column 2: "),
    (".json", "", "F: invalid: line 1, column 1: "),
    (".json", '{"zone": "a",}', "F: invalid: line 1, column "),
    (".json", '{"min-idle": NaN}', "F: invalid: NaN is not JSON"),
    (".json", "[" * 60_000, "F: invalid: nested too deep"),
    (".json", "[]", 'expected keys and values, such as `{"zone": "pek3a"}`'),
    (".toml", "zone = pek3a", "F: invalid: Invalid value (at line 1, column 8)"),
    (".toml", "zone = 'a'\nzone = 'b'\n", "F: invalid: Cannot overwrite a value (at line 2, column 11)"),
    (".toml", "max-idle = 012", "(at line 1, column "),
    (".xml", "", "F: invalid: line 1, column 1: no element found"),
    (".xml", "<a>\n<zone>x</iface></a>", "F: invalid: line 2, column 10: mismatched tag"),
    (".xml", "<a>&zone;</a>", "F: invalid: line 1, column 4: undefined entity"),
    (".xml", "<a zone='x'/>", "F: invalid: line 1: element a has attribute 'zone'; write values between the tags"),
    (".xml", "<a>words<zone>x</zone></a>", "F: invalid: line 1: text outside of a key's element"),
    (".xml", "<a>\n<zone name='x'/></a>", "F: invalid: line 2: element zone has attribute 'name'; write values"),
    (".xml", DOCTYPE, "F: invalid: line 1: DOCTYPE and entity declarations are rejected; write the values out"),
    (".xml", '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "F: invalid: line 1: DOCTYPE"),
    (".xml", BOMB, "F: invalid: line 1: DOCTYPE"),
    (".ini", "[QingAgent]\nzone", "F: invalid: line 2 is not `key = value`"),
    (".ini", "iface = eth0\nzone", "F: invalid: line 2 is not `key = value`"),
    (".ini", "zone", "F: invalid: line 1 is not `key = value`"),
    (".ini", "[QingAgent]\nzone=a\nzone=b", "F: invalid: line 3: key 'zone' is given twice"),
    (".ini", "zone=a\nzone=b", "F: invalid: line 2: key 'zone' is given twice"),
    (".ini", "zone=a\n[QingAgent]\niface=b", "F: invalid: line 2: section [QingAgent] begins after keys"),
    (
        ".ini",
        "[pool]\nmin-idle=3",
        "F: invalid: section [pool]: only [QingAgent], or no section, is allowed",
    ),
    (".ini", "zone=a\n[pool]\nmin-idle=3", "F: invalid: section [pool]"),
    (".ini", "[DEFAULT]\nzone=a", "F: invalid: section [DEFAULT]"),
    (".properties", "a=b\n= x", "F: invalid: line 2 is not `key = value`"),
    (".properties", "zone=\\u00g0", "F: invalid: line 1: \\u needs four hexadecimal digits"),
]


@pytest.mark.parametrize(("suffix", "content", "says"), REFUSED)
def test_a_broken_file_is_refused_and_the_place_is_named(
    suffix: str, content: str | bytes, says: str, tmp_path: Path
) -> None:
    assert says in refusal(tmp_path, suffix, content)


TWICE = {
    ".yaml": "zone: a\nZONE: b", ".yml": "zone: a\nzone: b", ".json": '{"zone": 1, "zone": 2}',
    ".toml": "zone = 'a'\nZone = 'b'", ".ini": "zone = a\nZone = b", ".properties": "zone = a\nzone = b",
}  # fmt: skip


@pytest.mark.parametrize("suffix", TWICE)
def test_a_key_twice_is_refused(suffix: str, tmp_path: Path) -> None:
    assert re.search(r"F: key '[Zz](one|ONE)' is given twice", refusal(tmp_path, suffix, TWICE[suffix]))


def test_an_element_twice_is_a_list_which_only_a_list_may_be(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match=r"the file: zone \['a', 'b'\]: rejected: expected a zone"):
        loaded(tmp_path, ".xml", "<a><zone>a</zone><zone>b</zone></a>")


NESTED = {
    ".yaml": "pool:\n  min-idle: 3", ".json": '{"pool": {"min-idle": 3}}', ".toml": "[pool]\nmin-idle = 3",
    ".xml": "<a><pool><min-idle>3</min-idle></pool></a>",
}  # fmt: skip


@pytest.mark.parametrize("suffix", NESTED)
def test_a_nested_key_is_refused(suffix: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, suffix, NESTED[suffix])
    assert said == "config file F: key 'pool' has a nested value; the file must be flat"


@pytest.mark.parametrize("text", ["vxnet: [[vxnet-1]]", "vxnet: [{a: b}]", "vxnet: [~]", "vxnet: [a, '']"])
def test_a_list_of_anything_but_words_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match=r"the file: vxnet \[.*\]: rejected: expected a list"):
        loaded(tmp_path, ".yaml", text)


def test_dates_of_toml_are_shown_as_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="the file: idle-ttl '2001-01-01': rejected"):
        loaded(tmp_path, ".toml", "idle-ttl = 2001-01-01")


def test_aliases_of_yaml_do_not_multiply(tmp_path: Path) -> None:
    """The bomb of nested lists is a list in a list, and that is as deep as it is read."""
    levels = "".join(f"k{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(StartRefused, match="unknown key 'k0'"):
        loaded(tmp_path, ".yaml", "k0: &l0 [x]\n" + levels)


@pytest.mark.parametrize("name", ["a.txt", "a", "QingAgent"])
def test_a_name_without_a_known_end_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("zone: pek3a")
    ends = "its name must end in .yaml, .yml, .json, .toml, .xml, .ini, .properties"
    with pytest.raises(StartRefused, match=re.escape(f"config file {path}: {ends}")):
        read_config(path)


def test_a_missing_file_a_directory_and_a_huge_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="read failed: No such file or directory; set another"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(StartRefused, match="read failed: Is a directory"):
        read_config(tmp_path / "d.yaml")
    assert "rejected: larger than 65536 bytes" in refusal(tmp_path, ".yaml", b"#" * (LARGEST + 1))
