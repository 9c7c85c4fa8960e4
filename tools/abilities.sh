#!/bin/sh
# Tries in a namespace of its own what the tests and the demo need of the kernel. Prints one sentence and fails if
# something is missing.
set -u

lacking() {
    echo "qingcloud-cni: tests and demo create real interfaces: $1" >&2
    exit 4
}

inside() { nsenter --net="/run/netns/$name" "$@"; }

[ "$(id -u)" = 0 ] || lacking "only root may do that; run this as root"

name=qcprobe-$$
trap 'ip netns delete "$name" 2>/dev/null' EXIT
ip netns add "$name" 2>/dev/null || lacking "\`ip netns add\` failed; run this on a machine that allows network namespaces"
ip -n "$name" link >/dev/null 2>&1 || lacking "\`ip -n\` failed: / is not a mount point; in a chroot, bind it to itself"
inside ip link add left type veth peer name right 2>/dev/null || lacking "this kernel has no veth interfaces"
inside ip link add bridge0 type bridge 2>/dev/null || lacking "this kernel has no bridges"
inside nft -f - 2>/dev/null <<'RULES' || lacking "this kernel's nftables has no bridge family"
table bridge probe {
    chain forward {
        type filter hook forward priority 0;
        arp saddr ip != 192.0.2.1 drop
    }
}
RULES
