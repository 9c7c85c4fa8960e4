"""Defects of earlier programs of this kind, and why one cannot happen here.

`tools/defects_page.py` joins them with the tests that bear their keys: each would fail if this program had the
defect. The keys are fixed: never reused.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that went wrong; *reason* says why it cannot here, wholly or in part."""

    key: str
    text: str
    reason: str = field(default="", kw_only=True)


HOSTNIC = "hostnic-cni v0.8.4, one NIC per pod on this cloud"
ANCESTOR = "qingcloud-cni v0.1, one NIC per pod on this cloud"
SLOW = "What was slow in both"
OTHERS = "Agents of other clouds, and later ones of this cloud: what their users reported"

PROGRAMS: dict[str, tuple[Defect, ...]] = {
    HOSTNIC: (
        Defect(
            "hostnic-1",
            "Some refused calls in a row, or a reached quota, end the pool for good while the process lives on; then "
            "every ADD fails, and a DEL crashes it.",
        ),
        Defect("hostnic-2", "An API that is down for half a minute ends the pool for good."),
        Defect(
            "hostnic-3",
            "An HTTP 502 with an HTML page, or a charset in the content type, crashes the agent.",
        ),
        Defect("hostnic-4", "A gateway NIC that cannot be made crashes the agent within an ADD."),
        Defect("hostnic-5", "An API that accepts the connection and stays silent blocks ADD for ever."),
        Defect(
            "hostnic-6", "A refused attach, or an attach job that fails, leaves the created NIC behind in the cloud."
        ),
        Defect("hostnic-7", "A create whose reply was lost is repeated: the first NIC leaks."),
        Defect(
            "hostnic-8",
            "ADD waits for a NIC for ever, and one whose caller was killed meanwhile gets a NIC that nobody "
            "releases.",
        ),
        Defect("hostnic-9", "DEL fails when it is repeated, and when the namespace is gone."),
        Defect(
            "hostnic-10",
            "The NIC of a namespace that died comes back to the host but not to the pool; DEL without a namespace "
            "succeeds and frees nothing.",
        ),
        Defect(
            "hostnic-11",
            "DEL gives the link a name that another link on the host may have; it fails, leaves the link in the "
            "container under the new name, and cannot find it again.",
        ),
        Defect("hostnic-12", "A repeated ADD fails and strands a second NIC in the container."),
        Defect(
            "hostnic-13",
            "After a restart a DEL that cannot ask the cloud says it succeeded and the NIC is lost; an empty list "
            "crashes it.",
        ),
        Defect(
            "hostnic-14",
            "No CHECK, no version above 0.3.1, and a result that names the container id where the namespace belongs.",
        ),
        Defect(
            "hostnic-15",
            "Returning NICs are held without limit; beyond some number DEL blocks.",
            reason="A released NIC is a row whose state changes: no queue could be full.",
        ),
        Defect("hostnic-16", "After a restart the agent adopts only the first page of the list of NICs."),
        Defect(
            "hostnic-17",
            "A kill between create and attach loses the NIC; a link that was half ready at a kill is taken for the "
            "gateway.",
        ),
        Defect("hostnic-18", "A second NIC of the host, an administrator's, is set down and assigned to a pod."),
        Defect(
            "hostnic-19",
            "Every peer that reaches the host may call the agent, which listens at all addresses, and may end it.",
        ),
        Defect(
            "hostnic-20",
            "A signal takes two minutes to end it; there are no figures about NICs; a lock is held while a "
            "gateway is "
            "made, so other ADDs stand still.",
        ),
    ),
    ANCESTOR: (
        Defect(
            "ancestor-1",
            "ADDs are served one by one; their callers give up, and the NICs created for them leak.",
        ),
        Defect(
            "ancestor-2",
            "After one refused attach, or one HTTP 502, every ADD times out.",
        ),
        Defect(
            "ancestor-3",
            "DEL takes the NIC away and then fails to set it down; repeated, or without its namespace, it fails and "
            "frees nothing.",
        ),
        Defect(
            "ancestor-4",
            "The default route of a pod leads to a gateway that has no address; the routes of the configuration are "
            "ignored.",
        ),
        Defect(
            "ancestor-5",
            "With two vxnets a rotating policy ends in an index out of range, and a misspelt policy is ignored.",
        ),
        Defect(
            "ancestor-6",
            "Without the agent ADD hangs for a minute, and DEL says that it succeeded and leaves the "
            "container's link, "
            "under the container's name for it, on the host.",
        ),
        Defect(
            "ancestor-7",
            "With the API away the message has its placeholders unfilled; zones are a fixed list; some settings, and "
            "the command `stop`, do nothing.",
        ),
    ),
    SLOW: (
        Defect(
            "slow-1",
            "ADD waits until duplicate address detection of IPv6 is over, a second and a half in each container.",
        ),
        Defect("slow-2", "NICs are created one after the other, two seconds each, since a timer detects them."),
        Defect("slow-3", "DEL waits half a minute for a link that nobody sets up on the host."),
        Defect("slow-4", "Twenty ADDs at once on a pool of three take a minute, four seconds for each one more."),
        Defect(
            "slow-5",
            "A gateway NIC is created within the first ADD of each vxnet, at two to twelve seconds.",
            reason="The first ADD waits for it here too, since its route needs it. It is "
            "created once, for all that wait, and found again after a restart.",
        ),
        Defect(
            "slow-6",
            "Without a pool each ADD creates and attaches, and each DEL detaches, in steps of one and five seconds.",
        ),
        Defect(
            "slow-7",
            "The plugin's process is part of every ADD: in Go 5 ms, in Python with all its usual modules ten"
            " times that.",
        ),
        Defect(
            "slow-8",
            "Most of ADD and DEL is the link's way into another namespace.",
            reason="That is the kernel's work, one at a time. Here it is done once per ADD and once per DEL.",
        ),
    ),
    OTHERS: (
        Defect(
            "others-1",
            "The NICs of a host that died stay in the cloud.",
            reason="`qingagent drain` before a host goes leaves none. For a host that was not drained, "
            "`qingagent orphans` finds its NICs by their names, which have the instance's id, and can delete them.",
        ),
        Defect("others-2", "A host that is about to end continues to attach NICs and loses them."),
        Defect("others-3", "A sweeper deletes a NIC that another host was just creating."),
        Defect(
            "others-4",
            "A NIC whose mark could not be set after it was created is never collected.",
            reason="The mark is the NIC's name, a parameter of CreateNics: every NIC of ours has it.",
        ),
        Defect("others-5", "A crash in the middle of making a NIC loses the NIC, and the pod with it."),
        Defect("others-6", "A slow attach is given up without being undone: a NIC is lost, and a pod has none."),
        Defect("others-7", "An ADD that fails after its NIC was attached or moved keeps the NIC."),
        Defect(
            "others-8",
            "After a boot or a crash NICs are left over or are not there, and the host's default route is "
            "another one; "
            "they are released one by one.",
        ),
        Defect("others-9", "An attach that the instance's limit refuses leaves the created NIC behind."),
        Defect("others-10", "Demand that nothing can satisfy makes NICs without bound."),
        Defect("others-11", "One network without addresses blocks all others, and releases too."),
        Defect("others-12", "After a container's death its NIC is in no namespace at all, until an operator acts."),
        Defect(
            "others-13",
            "After a boot an address stays taken: DEL comes without a namespace, with one that is gone, or "
            "not at all.",
        ),
        Defect("others-14", "A DEL without a namespace is ignored, so the NIC stays assigned."),
        Defect("others-15", "After a restart one address is assigned twice."),
        Defect("others-16", "NICs in use are released because a list was late, partial, or only counted."),
        Defect(
            "others-17", "The address of a pod that is ending goes to its successor, since both have the same name."
        ),
        Defect("others-18", "A restart forgets which addresses are cooling down."),
        Defect(
            "others-19", "Traffic for the former owner of an address reaches the next one, by tracked connections."
        ),
        Defect("others-20", "Cooling addresses count as free: no NIC is created, and pods wait."),
        Defect("others-21", "Neighbours continue to send to the MAC that an address had before."),
        Defect("others-22", "A lost deletion and a new pod of the same name end with one address in two places."),
        Defect("others-23", "A late DEL of an old container takes the interface of the new one."),
        Defect("others-24", "A DEL concurrent with an ADD leaves a mixed state."),
        Defect("others-25", "An address is released to the cloud while it is being assigned."),
        Defect(
            "others-26",
            "Many hosts that scale at once ask so much that the cloud refuses all of them, and each asks again.",
        ),
        Defect("others-27", "The only network of a pod has no address left, and there is no other to go to."),
        Defect(
            "others-28", "With all NICs in use, and another network configured meanwhile, no NIC is created any more."
        ),
        Defect("others-29", "The pool goes up and down for ever."),
        Defect("others-30", "In a network with few addresses left, creating by the batch gets none of them."),
        Defect("others-31", "Attaching to an instance that has ceased is retried for ever."),
    ),
}
