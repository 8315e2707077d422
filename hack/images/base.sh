#!/bin/sh
# Makes local/python-base:1 (Debian bookworm with Python 3.11, 130 MB) without any registry of images: debootstrap from
# the mirror that apt uses here, then buildah. As root. For `hack/images/build.py --base local/python-base:1`, in the
# same store as that uses.
set -eu
cd "$(dirname "$0")/../.."
out=dist/images
mkdir -p "$out"
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' | awk '$2 == "bookworm" { print $1; exit }')
if [ ! -e "$out/rootfs/.complete" ]; then
    rm -rf "$out/rootfs"
    debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$out/rootfs" "$mirror" > "$out/debootstrap.log"
    rm -rf "$out"/rootfs/var/cache/apt/archives/*.deb "$out"/rootfs/var/lib/apt/lists/*
    rm -rf "$out"/rootfs/usr/share/doc/* "$out"/rootfs/usr/share/man/* "$out"/rootfs/usr/share/locale/*
    touch "$out/rootfs/.complete"
fi
builder=$(hack/images/store.sh)
container=$($builder from scratch)
$builder add --quiet "$container" "$out/rootfs" /
$builder commit --quiet "$container" local/python-base:1 > /dev/null
$builder rm "$container" > /dev/null
echo local/python-base:1
