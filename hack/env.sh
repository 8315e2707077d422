#!/bin/sh
# Finds a Python that the project supports and hands over to hack/env.py, which builds the environment.
#   hack/env.sh [--venv DIR] [--requirements FILE]
# PYTHON=/path/to/python picks the interpreter by hand.
set -eu
here=$(dirname "$0")
supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
for python in ${PYTHON:-python3.11 python3.12 python3 python}; do
    if "$python" -c "$supported" >/dev/null 2>&1; then
        exec "$python" "$here/env.py" "$@"
    fi
done
echo "make env: no Python 3.11 or 3.12 was found (tried: ${PYTHON:-python3.11 python3.12 python3 python})." >&2
echo "Install one (Debian 12: apt-get install python3 python3-venv), or name it: make env PYTHON=/path/to/python3.11" >&2
exit 1
