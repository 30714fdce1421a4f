"""Add new items to a trained run, without training again: python scripts/add_items.py --run FOLDER --items-file TABLE
--out FOLDER."""

import argparse
from pathlib import Path

from tigerrec.new_items import add_items
from tigerrec.pipeline import reporting

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished train stage, or an export")
    parser.add_argument(
        "--items-file",
        required=True,
        type=Path,
        help="table of new items: item_id and title, brand, categories, price, text or vector",
    )
    parser.add_argument("--out", required=True, type=Path, help="new folder, or an older export to replace")
    options = parser.parse_args()
    with reporting():
        print(add_items(options.run, options.items_file, options.out))
