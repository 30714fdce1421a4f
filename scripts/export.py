"""Write a trained run as one self-contained folder: python scripts/export.py --run FOLDER --out FOLDER."""

import argparse
import logging
import sys
from pathlib import Path

from tigerrec import TigerrecError
from tigerrec.export import export

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished train stage")
    parser.add_argument("--out", required=True, type=Path, help="new folder, or an older export to replace")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(export(options.run, options.out))
    except TigerrecError as error:
        sys.exit(f"Error: {error}")
