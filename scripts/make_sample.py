"""Write the bundled sample; prints its folder. Usage: python scripts/make_sample.py [folder]"""

import sys
from pathlib import Path

from tigerrec import TigerrecError
from tigerrec.sample import write_sample

if __name__ == "__main__":
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    try:
        print(write_sample(Path(sys.argv[1] if len(sys.argv) > 1 else "data/sample")))
    except TigerrecError as error:
        sys.exit(f"Error: {error}")
