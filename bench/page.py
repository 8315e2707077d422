"""Write docs/benchmarks.md anew from the newest results: python bench/page.py"""

from __future__ import annotations

import argparse
import sys

from benchkit import report


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    report.write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
