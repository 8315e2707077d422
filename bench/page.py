"""Write the figures of docs/benchmarks.md and docs/operate/scale.md anew from the newest results."""

from __future__ import annotations

import argparse
import sys

from benchkit import report, scale_page


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    report.write_page()
    scale_page.write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
