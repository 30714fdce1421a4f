"""One thread a test process, so that tests running side by side do not wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("MAKELEVEL", None)  # commands are told as they are without make
