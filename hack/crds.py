"""Prints a custom resource definition, made from the typed spec.

python hack/crds.py streampairs|streampairscalers
"""

import sys

from streamserve.contract.streampair.crd import definitions, manifest


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in definitions():
        print(f"usage: python hack/crds.py {'|'.join(definitions())}", file=sys.stderr)
        return 2
    sys.stdout.write(manifest(arguments[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
