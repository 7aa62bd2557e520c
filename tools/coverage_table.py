"""Print gcovr's JSON summary as one table: lines and branches of every file, and the sum.

coverage_table.py SUMMARY.json
"""

import json
import pathlib
import sys


def share(covered: int, total: int) -> str:
    return f"{covered:5}/{total:<5} {100 * covered / total if total else 100:5.1f} %"


def main() -> None:
    summary = json.loads(pathlib.Path(sys.argv[1]).read_text())
    print(f"{'file':36}{'lines':>19}   {'branches':>19}")
    for file in summary["files"]:
        lines = share(file["line_covered"], file["line_total"])
        print(f"{file['filename']:36}{lines:>19}   {share(file['branch_covered'], file['branch_total']):>19}")
    lines = share(summary["line_covered"], summary["line_total"])
    print(f"{'all':36}{lines:>19}   {share(summary['branch_covered'], summary['branch_total']):>19}")


if __name__ == "__main__":
    main()
