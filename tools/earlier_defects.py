"""What earlier programs of this kind were seen to do wrong, defect by defect, and why one cannot happen here.

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
            "An HTTP 502 with a page for people, or a charset behind the content type, crashes the agent.",
        ),
        Defect("hostnic-4", "A gateway NIC that cannot be made crashes the agent within an ADD."),
        Defect("hostnic-5", "An API that accepts the connection and stays silent holds up ADD without end."),
        Defect(
            "hostnic-6", "A refused attach, or an attach job that fails, leaves the created NIC behind in the cloud."
        ),
        Defect("hostnic-7", "A create whose answer was lost is sent again: one NIC more than anybody knows of."),
        Defect(
            "hostnic-8",
            "ADD waits for a NIC without end, and one whose caller was killed meanwhile gets a NIC all the same, "
            "which nobody returns.",
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
            "NICs that come back are kept however many there are; beyond some number DEL blocks.",
            reason="A released NIC is a row whose state changes: no queue could be full.",
        ),
        Defect("hostnic-16", "After a restart only the first page of the list of NICs is taken over."),
        Defect(
            "hostnic-17",
            "A kill between create and attach loses the NIC; a link that was half ready at a kill is taken for the "
            "gateway.",
        ),
        Defect("hostnic-18", "A second NIC of the host, an administrator's, is set down and given to a pod."),
        Defect(
            "hostnic-19",
            "Whoever reaches the host may call the agent, which listens at all addresses, and may end it.",
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
            "ADDs are served one by one; their callers give up while it goes on making NICs for them, which "
            "are lost.",
        ),
        Defect(
            "ancestor-2",
            "One refused attach, or one HTTP 502, ends its state: each ADD after that runs into its end.",
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
            "Two vxnets and a policy that goes round end in an index out of range, and a misspelt policy in "
            "no policy.",
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
        Defect("slow-2", "NICs are made one after the other, two seconds each, since a clock's tick finds them."),
        Defect("slow-3", "A link that nobody sets up on the host is waited for half a minute, each time."),
        Defect("slow-4", "Twenty ADDs at once on a pool of three take a minute, four seconds for each one more."),
        Defect(
            "slow-5",
            "A gateway NIC is made within the first ADD of each vxnet, at two to twelve seconds.",
            reason="The first ADD that wants one waits for it here too, since its route cannot be had without. It is "
            "made once, for all who wait, and found again after a restart.",
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
            reason="`qingagent drain` before a host goes leaves none. Where nobody could drain it, "
            "`qingagent orphans` finds what is left by its name, which has the instance's id, and can delete it.",
        ),
        Defect("others-2", "A host that is on its way out goes on attaching NICs and loses them."),
        Defect("others-3", "A sweeper deletes a NIC that another host was just making."),
        Defect(
            "others-4",
            "A NIC whose mark could not be set after it was created is never collected.",
            reason="The mark is the NIC's name, a parameter of CreateNics: there is no NIC of ours without it.",
        ),
        Defect("others-5", "A crash in the middle of making a NIC loses the NIC, and the pod with it."),
        Defect(
            "others-6", "An attach that takes too long is given up without undoing it: a NIC lost, a pod without one."
        ),
        Defect("others-7", "An ADD that fails after its NIC was attached or moved keeps the NIC."),
        Defect(
            "others-8",
            "After a boot or a crash NICs are left over or are not there, and the host's default route is "
            "another one; "
            "they are given back one by one.",
        ),
        Defect("others-9", "An attach that the instance's limit refuses leaves the created NIC behind."),
        Defect("others-10", "Demand that nothing can satisfy makes NICs without bound."),
        Defect("others-11", "One network without addresses stands in the way of all others, and of giving back."),
        Defect(
            "others-12", "After a container's death its NIC is in no namespace at all, until somebody acts by hand."
        ),
        Defect(
            "others-13",
            "After a boot an address stays taken: DEL comes without a namespace, with one that is gone, or "
            "not at all.",
        ),
        Defect("others-14", "A DEL without a namespace is passed over, so the NIC stays taken."),
        Defect("others-15", "After a restart one address is handed out twice."),
        Defect("others-16", "What serves is released, since a list was late, short, or only counted."),
        Defect(
            "others-17", "The address of a pod that is ending goes to its successor, since both have the same name."
        ),
        Defect("others-18", "A restart forgets which addresses are still resting."),
        Defect(
            "others-19", "Traffic for the former owner of an address reaches the next one, by tracked connections."
        ),
        Defect("others-20", "Resting addresses count as free: nothing is made, and pods wait."),
        Defect("others-21", "Neighbours go on sending to the MAC that an address had before."),
        Defect("others-22", "A lost deletion and a new pod of the same name end with one address in two places."),
        Defect("others-23", "A late DEL of an old container takes the interface of the new one."),
        Defect("others-24", "A DEL that crosses an ADD leaves a state that is neither."),
        Defect("others-25", "An address is given back to the cloud while it is being handed out."),
        Defect(
            "others-26",
            "Many hosts that scale at once ask so much that the cloud refuses all of them, and each asks again.",
        ),
        Defect("others-27", "The only network of a pod has no address left, and there is no other to go to."),
        Defect(
            "others-28", "With all NICs in use, and another network configured meanwhile, nothing is made any more."
        ),
        Defect("others-29", "The pool goes up and down for ever."),
        Defect("others-30", "In a network with few addresses left, creating by the batch gets none of them."),
        Defect("others-31", "Attaching to an instance that has ceased is tried again for ever."),
    ),
}
