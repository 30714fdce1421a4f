"""Turn the text of every item into a vector."""

import hydra
from omegaconf import DictConfig

from tigerrec import pipeline


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    pipeline.command(cfg, "embed")


if __name__ == "__main__":
    pipeline.start(main)
