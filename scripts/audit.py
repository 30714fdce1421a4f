"""Check the numbers of a run: leakage, ties, masking, the trie, hits, diversity, buckets, new items, whether the
history is read."""

import hydra
from omegaconf import DictConfig

from tigerrec import audit, pipeline


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    audit.command(cfg)


if __name__ == "__main__":
    pipeline.start(main)
