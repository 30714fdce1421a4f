"""Recommend items for a history: python scripts/recommend.py --run FOLDER --items ID,ID,… --k 10."""

import argparse
import sys

from tigerrec import TigerrecError
from tigerrec.recommender import Recommender

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="folder of a train stage or of an export")
    parser.add_argument("--items", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("--k", type=int, default=10, help="how many items")
    options = parser.parse_args()
    try:
        found = Recommender.from_pretrained(options.run).recommend([item.strip() for item in options.items.split(",") if item.strip()], options.k)
    except TigerrecError as error:
        sys.exit(str(error))
    for rank, item in enumerate(found, start=1):
        print(f"{rank:3}  {item.item_id}  {item.score:8.3f}  {'-'.join(map(str, item.semantic_id)):<16}  {item.title or '(no title)'}")
