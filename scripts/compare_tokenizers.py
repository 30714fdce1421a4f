"""Fit all tokenizers, or those of tokenizers=[…], and write a table and pictures of how they differ."""

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tigerrec import compare_tokenizers, pipeline


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    GlobalHydra.instance().clear()  # each tokenizer has a configuration of its own, composed anew
    compare_tokenizers.command(list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    pipeline.start(main)
