"""Claims of the CNI specification, and of runtimes and libcni, on a plugin.

`tools/cni_conformance.py` joins them with the tests that carry their numbers. The numbers are fixed: never reused.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that must hold; *reason* says why it cannot apply here, wholly or in part."""

    key: int
    text: str
    source: str  # a section of the specification, or who relies on it
    reason: str = ""


SUBJECTS: dict[str, tuple[Claim, ...]] = {
    "The environment": (
        Claim(1, "VERSION repeats a given `cniVersion` and lists all seven versions.", "spec 5, VERSION"),
        Claim(2, "VERSION needs no stdin, and validates no variable: runtimes send dummies.", "library"),
        Claim(3, "Without `CNI_COMMAND`: code 4, and the message names the variable.", "spec 5, Error"),
        Claim(4, "An unknown verb, such as `FOO` or `add`: code 4, and the message names it.", "spec 2"),
        Claim(
            5,
            "ADD without container id, namespace and interface name: code 4, and the message names all three.",
            "spec 2",
        ),
        Claim(6, "An empty variable counts as unset.", "library"),
        Claim(7, "DEL succeeds without `CNI_NETNS`.", "spec 2, DEL"),
        Claim(8, "CHECK without `CNI_NETNS`: code 4.", "spec 2, CHECK"),
        Claim(9, "A container id with an invalid character, a final newline included: code 4.", "spec 2"),
        Claim(10, "Every valid container id works, whatever its length.", "spec 2"),
        Claim(11, "A bad interface name (16 bytes, `..`, `a/b`, `eth%d` …): code 4, and no link changes.", "spec 2"),
        Claim(12, "An interface name of 15 bytes is the interface's name, byte for byte.", "spec 2"),
    ),
    "Stdin": (
        Claim(13, "No network name, or one with an invalid character: code 7.", "spec 1"),
        Claim(14, "Anything but exactly one JSON object in UTF-8: code 6.", "spec 5, Error"),
        Claim(15, "A closed or unreadable stdin: code 5, and no traceback.", "spec 5, Error"),
        Claim(16, "An unsupported version: code 1, and the details name the supported ones.", "spec 5, Error"),
        Claim(17, "A `cniVersion` that is not a string: code 6.", "spec 5, Error"),
    ),
    "Results": (
        Claim(18, "Without a version, or with an empty one, ADD answers in 0.1.0.", "library"),
        Claim(19, "ADD answers in the version of the request, in each of the seven.", "spec 5, ADD Success"),
        Claim(20, "0.1.0 and 0.2.0: `ip4` with address, prefix and routes; no `interfaces`, no `ips`.", "spec 0.2.0"),
        Claim(21, "0.3.0 to 0.4.0: each of `ips` has a `version`, the text `4` or `6`.", "spec 0.3.1"),
        Claim(22, "1.0.0 and 1.1.0: none of `ips` has a `version`.", "spec 5, ADD Success"),
        Claim(23, "Below 1.1.0: no `mtu`, `pciID`, `socketPath`; routes have `dst` and `gw` only.", "spec 5"),
        Claim(24, "1.1.0: an interface's `mtu` is the link's, as a number.", "spec 5, ADD Success"),
        Claim(25, "The result lists the interface with its name, its MAC, and `CNI_NETNS` unchanged.", "spec 5"),
        Claim(26, "The `interface` of each of `ips` is an index of the list, 0 written out.", "spec 5, ADD Success"),
        Claim(27, "Each route's `dst` is a network; the default route is listed with its `gw`.", "spec 5"),
        Claim(28, "Two addresses of one family in a version with one per family: the first, or code 7.", "library"),
        Claim(29, "The configuration's `dns` is in the result, which never has a `null`.", "spec 5, ADD Success"),
        Claim(30, "Stdout is exactly one JSON document, whatever is logged.", "library"),
    ),
    "ADD": (
        Claim(
            31, "The interface's name is taken: ADD fails, leaves that link alone, and holds nothing.", "spec 2, ADD"
        ),
        Claim(32, "An ADD that fails at any step holds nothing, and the same ADD again succeeds.", "Nomad"),
        Claim(33, "After an ADD that was killed at any step a DEL cleans up.", "containerd"),
        Claim(34, "`CNI_NETNS` does not exist or is not a namespace: code 8, and ADD holds nothing.", "library"),
        Claim(35, "`CNI_NETNS` is the host's own: code 8, before anything is touched.", "library"),
        Claim(36, "Twenty ADDs at once succeed, each with a NIC and an address of its own.", "spec 3"),
        Claim(37, "Two interfaces of one container are independent; DEL of one leaves the other.", "spec 3"),
        Claim(38, "ADD with a `prevResult` keeps all of it and adds its own, with indexes that fit.", "spec 2, ADD"),
        Claim(39, "A `prevResult` without a version is read in the configuration's.", "library"),
        Claim(40, "A `prevResult` of another version is converted; the answer is in the configuration's.", "ours"),
    ),
    "DEL": (
        Claim(41, "After DEL the interface is gone from the namespace and the NIC free.", "spec 2, DEL"),
        Claim(42, "Repeated DELs succeed.", "spec 2, DEL"),
        Claim(43, "DEL of a container never added succeeds and changes nothing.", "spec 2, DEL"),
        Claim(44, "DEL succeeds and frees the NIC if the namespace's path is removed.", "spec 2, DEL"),
        Claim(45, "DEL succeeds and frees the NIC if the namespace's path is a left-over file.", "containerd"),
        Claim(
            46, "DEL with the host's own namespace in `CNI_NETNS` frees the NIC, and touches no link there.", "ours"
        ),
        Claim(
            47,
            "The agent finds a NIC whose namespace died before DEL on the host by its MAC, and uses it again.",
            "Linux",
        ),
        Claim(48, "DEL succeeds if the workload renamed, moved or deleted the interface.", "spec 2, DEL"),
        Claim(49, "DEL needs no `prevResult`.", "spec 2, DEL"),
        Claim(50, "DEL with a `prevResult` that contradicts the table frees what the table says, no more.", "ours"),
        Claim(51, "DEL succeeds while processes run in the namespace.", "CRI-O"),
        Claim(52, "DEL frees the NIC if the configuration has changed since ADD.", "containerd"),
        Claim(53, "DEL without the agent is spooled and succeeds.", "ours"),
        Claim(54, "DEL prints nothing, and needs no `CNI_ARGS`.", "spec 2, Nomad"),
    ),
    "CHECK": (
        Claim(55, "CHECK straight after ADD succeeds, in 0.4.0, 1.0.0 and 1.1.0.", "spec 2, CRI-O"),
        Claim(56, "CHECK with a version below 0.4.0: code 1.", "library"),
        Claim(57, "CHECK without a `prevResult`: code 7.", "spec 2, CHECK"),
        Claim(58, "CHECK fails if interface, address or a listed route is gone, or the link down.", "spec 2, CHECK"),
        Claim(59, "CHECK succeeds if others have added addresses and routes.", "spec 2, CHECK"),
        Claim(60, "CHECK fails if the agent has no such attachment.", "spec 2, CHECK"),
        Claim(61, "CHECK succeeds with another MAC if the `prevResult` lists it.", "spec, appendix"),
        Claim(62, "CHECK changes nothing.", "spec 2, CHECK"),
    ),
    "STATUS and GC": (
        Claim(63, "STATUS succeeds if the agent is ready.", "spec 2, STATUS"),
        Claim(
            64,
            "STATUS: code 50 within 3 s, and only if the agent is absent or not initialised.",
            "spec 2, containerd",
        ),
        Claim(65, "STATUS or GC with a version below 1.1.0: code 1.", "library"),
        Claim(66, "A failed STATUS does not prevent ADD.", "spec 2, STATUS"),
        Claim(67, "GC frees at once unlisted attachments without a namespace, and no others.", "spec 2, GC"),
        Claim(
            68,
            "GC with an empty list or `null` frees all such attachments of its network, and none of another.",
            "spec 2, GC",
        ),
        Claim(69, "GC reads the list's old key too. Without either key GC succeeds and frees nothing.", "library"),
        Claim(
            70,
            "GC continues after a failure, and reports it at the end.",
            "spec 2, GC",
            "A real kernel cannot be made to refuse one NIC of several; the kernel in memory can.",
        ),
        Claim(
            71, "An unlisted attachment with a living namespace has its NIC until DEL, and an event says so.", "ours"
        ),
    ),
    "Other keys and arguments": (
        Claim(72, "Unknown keys at the top of the configuration, and `capabilities`, are ignored.", "spec 1"),
        Claim(73, "Unknown content of `args` is ignored.", "conventions"),
        Claim(
            74, "Unknown keys of `CNI_ARGS`, in any order, are ignored; those of a pod are recorded.", "conventions"
        ),
        Claim(
            75,
            "`portMappings` are understood as `hostPort` and as `HostPort`.",
            "containerd, Nomad",
            "`portmap`, chained after `qingcni`, maps ports; `qingcni` accepts both spellings.",
        ),
        Claim(76, "Mesos's call, with no version and a minimal environment, gets `ip4` in 0.1.0.", "Mesos"),
    ),
    "Errors, deadlines, processes": (
        Claim(77, "The process ends within its deadline if the agent hangs, and leaves no child.", "library"),
        Claim(78, "Every failure is one JSON object: `cniVersion`, `code` (a number), `msg`.", "spec 5, Error"),
        Claim(79, "A chain of `qingcni`, `portmap` and `tuning` works, verb by verb, in each version.", "library"),
        Claim(80, "A hundred concurrent calls succeed while the executable is replaced.", "library"),
        Claim(81, "A key of ours that ADD cannot fulfil is code 7, naming key and value.", "spec 5, Error"),
    ),
}
