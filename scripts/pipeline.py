"""Run all stages up to `until` in one process; `-m` sweeps: python scripts/pipeline.py -m tokenizer=rkmeans,random
generator.seed=0,1."""

import hydra
from omegaconf import DictConfig

from tigerrec import pipeline


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    pipeline.command(cfg)


if __name__ == "__main__":
    pipeline.start(main)
