"""Tune a baseline on validation and measure it as the generator is: python scripts/baselines.py baseline=sasrec_ce
dataset=beauty."""

import hydra
from omegaconf import DictConfig

from tigerrec import pipeline
from tigerrec.baselines import command


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    command.command(cfg)


if __name__ == "__main__":
    pipeline.start(main)
