#!/bin/sh
# Prints the path of a promtool: the one in PATH, else Debian's, fetched with apt and unpacked into .cache without being
# installed, so that no Prometheus starts.
set -eu
cd "$(dirname "$0")/.."
home=$PWD/.cache/prometheus
if found=$(command -v promtool); then
    echo "$found"
    exit 0
fi
if [ ! -x "$home/unpacked/usr/bin/promtool" ]; then
    echo "promtool: fetching Debian's prometheus into .cache/prometheus" >&2
    rm -rf "$home" && mkdir -p "$home"
    (cd "$home" && apt-get -qq download prometheus) 2> "$home/log" || { cat "$home/log" >&2; exit 1; }
    dpkg-deb -x "$home"/prometheus_*.deb "$home/unpacked"
fi
echo "$home/unpacked/usr/bin/promtool"
