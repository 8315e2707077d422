#!/bin/sh
# Prints how buildah is called here: with a store of this checkout. Overlay where the kernel and the folder's file system
# have it, for it copies nothing; else vfs, which copies everything for every layer.
set -eu
out=$(dirname "$0")/../../dist/images
mkdir -p "$out"
out=$(cd "$out" && pwd)
driver=vfs
if grep -qw overlay /proc/filesystems && [ "$(stat --file-system --format=%T "$out")" != overlayfs ]; then
    driver=overlay
fi
echo "buildah --storage-driver $driver --root $out/store-$driver --runroot $out/run-$driver"
