#!/bin/sh
# Prints a folder with Debian's curl and those of its libraries that the base image of base.sh lacks, fetched with apt
# and unpacked into .cache without being installed. For the image of the test cluster's client.
set -eu
cd "$(dirname "$0")/.."
home=$PWD/.cache/curl
has=dist/images/rootfs/var/lib/dpkg/status
if [ ! -x "$home/unpacked/usr/bin/curl" ]; then
    echo "curl: fetching Debian's into .cache/curl" >&2
    rm -rf "$home" && mkdir -p "$home/debs"
    apt-cache depends --recurse --important --no-pre-depends curl:amd64 | grep '^[a-z0-9]' | cut -d: -f1 | sort -u > "$home/needs"
    sed -n 's/^Package: //p' "$has" | sort -u > "$home/has"
    (cd "$home/debs" && comm -23 ../needs ../has | xargs apt-get -qq download) 2> "$home/log" || { cat "$home/log" >&2; exit 1; }
    for package in "$home"/debs/*.deb; do dpkg-deb -x "$package" "$home/new"; done
    mv "$home/new" "$home/unpacked"
fi
echo "$home/unpacked"
