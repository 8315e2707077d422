#!/bin/sh
# Compiles requirements/*.txt from pyproject.toml and requirements/*.in: one file for Python 3.11 and 3.12, every
# download with its hash, no address of any index. ARGS="--upgrade" takes the newest versions.
set -eu
cd "$(dirname "$0")/.."
uv=$(ls -t .cache/uv-*/bin/uv 2>/dev/null | head -n 1)
if [ -z "$uv" ]; then
    echo "requirements: uv is missing under .cache. Remove .venv/streamserve-env.json and run make env." >&2
    exit 1
fi
compile() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-annotate --no-header "$@"
}
for version in "" -0.26; do
    echo "compiling requirements/worker-cpu$version.txt" >&2
    compile --override "requirements/overrides$version.txt" --extra operator --extra router --extra dev \
        pyproject.toml "requirements/worker-cpu$version.in" --output-file "requirements/worker-cpu$version.txt" "$@"
done
# What each image installs, and pip itself to do it with.
for image in operator router worker worker-simulator; do
    echo "compiling requirements/image-$image.txt" >&2
    extra=${image%-simulator}
    [ "$extra" = "$image" ] && extra="--extra $image" || extra=
    # shellcheck disable=SC2086
    compile $extra pyproject.toml requirements/image.in --output-file "requirements/image-$image.txt" "$@"
done
echo "compiling requirements/chart.txt" >&2
compile requirements/chart.in --output-file requirements/chart.txt "$@"
echo "compiling requirements/uv.txt" >&2
compile requirements/uv.in --output-file requirements/uv.txt "$@"
