#!/bin/sh
# Installs the named Debian packages whose programs or files this machine lacks. It checks for these, not for
# the packages, so other distributions do as well.
set -eu
python=${PYTHON:-python3}

refuse() {
    echo "qingcloud-cni: $1" >&2
    exit 1
}

does_its_work() {
    case $1 in
        python3-venv) "$python" -c 'import ensurepip, venv' ;;
        ca-certificates) test -s /etc/ssl/certs/ca-certificates.crt || test -s /etc/pki/tls/certs/ca-bundle.crt ;;
        iproute2) command -v ip ;;
        nftables) command -v nft ;;
        iputils-ping) command -v ping ;;
        procps) command -v ps ;;
        kmod) command -v modprobe ;;
        busybox-static) busybox=$(command -v busybox) && ! ldd "$busybox" ;;  # `busybox` alone needs libraries
        containerd) command -v containerd && command -v ctr ;;
        runc) command -v runc ;;
        podman) command -v podman && command -v conmon ;;
        containernetworking-plugins) test -x /usr/lib/cni/host-device || test -x /opt/cni/bin/host-device ;;
        *) refuse "tools/packages.sh: package $1 is unknown; add it to does_its_work" ;;
    esac >/dev/null 2>&1
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    refuse "$python is older than Python 3.11; name a newer one with: make PYTHON=/path/to/python3"

missing=
for package in "$@"; do
    does_its_work "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || refuse "programs are missing; install what Debian calls$missing, then try again"
[ "$(id -u)" = 0 ] || refuse "packages are missing; run this as root once, or install:$missing"

echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    apt-get -qq -o DPkg::Lock::Timeout=300 -o APT::Keep-Downloaded-Packages=false "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        refuse "apt-get failed to install$missing; its output is above"
    }
}
apt update
# shellcheck disable=SC2086  # a list of words
apt install --yes --no-install-recommends $missing

for package in $missing; do
    does_its_work "$package" || refuse "$package is installed, but $python does not find it; try make PYTHON=/usr/bin/python3"
done
