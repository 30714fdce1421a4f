"""Compare trained runs: python scripts/compare_runs.py FOLDER… [--plot FILE.png]; prints a table in Markdown, draws
validation over time."""

import argparse
import sys
from pathlib import Path

from tigerrec import TigerrecError
from tigerrec.compare_runs import plot_validation, read_runs, training_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        help="folders of finished train stages, or copies of their manifest.json and training.jsonl",
    )
    parser.add_argument(
        "--plot", type=Path, help="a picture of validation NDCG@10 over minutes of training, .png or .svg"
    )
    options = parser.parse_args()
    try:
        runs = read_runs(options.folders)
        if options.plot:
            plot_validation(runs, options.plot)
        print(training_table(runs))
    except TigerrecError as error:
        sys.exit(f"Error: {error}")
