"""Recommend items for a history: python scripts/recommend.py --run FOLDER --items ID,ID,… --k 10."""

import argparse
import logging
import sys

from tigerrec import TigerrecError
from tigerrec.recommender import Recommender

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="folder of a train stage or of an export")
    parser.add_argument("--items", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("--k", type=int, default=10, help="how many items")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    try:
        recommender = Recommender.from_pretrained(options.run)
        print(recommender.report([item.strip() for item in options.items.split(",") if item.strip()], options.k))
    except TigerrecError as error:
        sys.exit(f"Error: {error}")
