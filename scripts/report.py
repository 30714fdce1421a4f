"""Write a page about a run or a table: python scripts/report.py --run FOLDER | --table FOLDER [--out FILE.html]."""

import argparse
import logging
import sys
from pathlib import Path

from tigerrec import TigerrecError
from tigerrec.report import report_run, report_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    about = parser.add_mutually_exclusive_group(required=True)
    about.add_argument("--run", type=Path, help="folder of an evaluate stage, or of a train stage with one evaluation")
    about.add_argument("--table", type=Path, help="folder of a table of results")
    parser.add_argument("--out", type=Path, help="the page to write; report.html in the folder by default")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(report_run(options.run, options.out) if options.run else report_table(options.table, options.out))
    except TigerrecError as error:
        sys.exit(f"Error: {error}")
