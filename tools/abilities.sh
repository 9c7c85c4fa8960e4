#!/bin/sh
# Tries what the tests and the demo ask of the kernel, in a namespace of its own; one sentence and failure if it
# cannot be had.
set -u

lacking() {
    echo "qingcloud-cni: tests and demo make real interfaces, and $1" >&2
    exit 4
}

inside() { nsenter --net="/run/netns/$name" "$@"; }

[ "$(id -u)" = 0 ] || lacking "that takes root: please run this as root."

name=qcprobe-$$
trap 'ip netns delete "$name" 2>/dev/null' EXIT
ip netns add "$name" 2>/dev/null || lacking "this machine refuses network namespaces (ip netns add)."
ip -n "$name" link >/dev/null 2>&1 || lacking "ip -n needs a / that is a mount point: in a plain chroot, bind it to itself."
inside ip link add left type veth peer name right 2>/dev/null || lacking "this kernel has no veth interfaces."
inside ip link add bridge0 type bridge 2>/dev/null || lacking "this kernel has no bridges."
inside nft -f - 2>/dev/null <<'RULES' || lacking "this kernel's nftables has no bridge family."
table bridge probe {
    chain forward {
        type filter hook forward priority 0;
        arp saddr ip != 192.0.2.1 drop
    }
}
RULES
