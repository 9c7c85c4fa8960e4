"""docs/chaining.md: its list works, and its versions are those of the plugins."""

import json

from cni.chains import call_of, libcni_of, wait_until_all_is_back
from cni.networks import number, parse
from cni.results import VERSIONS
from machines.hosts import Host
from machines.simulator import needs_root
from pages import ROOT, blocks, page, table

PAGE = ROOT / "docs" / "chaining.md"


@needs_root
def test_the_list_works_as_it_is_shown(host: Host) -> None:
    """With this agent's token file."""
    (document,) = [json.loads(block.text) for block in blocks(PAGE) if block.language == "json"]
    document["plugins"][0]["args"]["TokenFile"] = str(host.token_file)
    network, container, library = parse(json.dumps(document).encode()), host.container(), libcni_of(host)
    library.validate(network)
    library.add(network, call_of(container))
    library.check(network, call_of(container))
    library.delete(network, call_of(container))
    wait_until_all_is_back(host)


@needs_root
def test_plugins_support_the_versions_on_the_page(host: Host) -> None:
    library = libcni_of(host)
    for names, versions, *_ in table(page("docs/chaining.md"), "Plugin", "Versions"):
        oldest, newest = versions.split(" to ")
        between = {v for v in VERSIONS if number(oldest) <= number(v) <= number(newest)}
        for name in names.replace("`", "").split(", "):
            spoken = set(library.versions(name))
            assert between <= spoken, name
            assert not {v for v in spoken if number("0.3.0") <= number(v) < number(oldest)}, name
