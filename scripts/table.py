"""Run all cells of a table that are not done, and write the table: python scripts/table.py experiment=beauty_table
seeds=1."""

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tigerrec import pipeline, table


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    GlobalHydra.instance().clear()  # each cell has a configuration of its own, composed anew
    table.command(list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    pipeline.start(main)
