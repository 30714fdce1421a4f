"""Fit a tokenizer and give every item its Semantic ID."""

import hydra
from omegaconf import DictConfig

from tigerrec import pipeline


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    pipeline.command(cfg, "tokenize")


if __name__ == "__main__":
    pipeline.start(main)
