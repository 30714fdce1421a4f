"""Measure training and search against the stock way of transformers and against the arithmetic limit."""

import hydra
from omegaconf import DictConfig

from tigerrec import benchmark, pipeline


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    benchmark.command(cfg)


if __name__ == "__main__":
    pipeline.start(main)
