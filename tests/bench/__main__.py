"""``make bench``: how long what a user waits for takes, on VPSes that are 0 and 100 ms away. See --help."""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.cases import CASES
from bench.lab import Lab
from bench.report import Row, compared_with, save, table
from imbue.mngr_local_vps.images import ensure_images


def main() -> int:
    """Run the cases and show the table; 1 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--rounds", type=int, default=5, help="how often each thing is measured (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where to save (%(default)s)")
    parser.add_argument("--compare", type=Path, help="the JSON of an earlier run")
    options = parser.parse_args()
    ensure_images(lambda line: print(f"local VPS: {line}", file=sys.stderr))  # noqa: T201
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="mngr-bench-") as folder, Lab(Path(folder), options.rounds) as lab:
            for case in options.cases or CASES:
                for row in CASES[case](lab):
                    rows.append(row)
                    sys.stderr.write(f"{' | '.join(cell for cell in row.cells() if cell)}\n")
    finally:
        # What was measured before something went wrong is worth minutes.
        sys.stdout.write(f"{table(rows)}\n")
        options.json.parent.mkdir(parents=True, exist_ok=True)
        save(options.json, rows)
    for line in compared_with(options.compare, rows) if options.compare else ():
        sys.stdout.write(f"{line}\n")
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
