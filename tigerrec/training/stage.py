"""The train stage: a generator learns to continue histories; the weights that validate best are kept."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tigerrec import TigerrecError
from tigerrec.data.histories import validation_sample
from tigerrec.embed.stage import load_embeddings
from tigerrec.models.base import VECTORS
from tigerrec.runtime import distributed
from tigerrec.runtime.seeds import derived_seed
from tigerrec.search.options import CHOSEN, WEIGHED
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import remove_tree
from tigerrec.storage.fingerprints import canonical_json, describe
from tigerrec.storage.manifests import StaleError
from tigerrec.storage.stages import input_records, open_stage, writing
from tigerrec.tokenizers.ids import load_inputs
from tigerrec.training.options import ENCODER_MASK, TrainConfig, Training

logger = logging.getLogger(__name__)


def train(
    prepared: Path,
    tokenized: Path,
    config: TrainConfig,
    out: Path,
    extra: Mapping[str, Path] | None = None,
    validated: Path | None = None,
) -> Path:
    """Train a generator on the training parts of all histories, or on everything without `holdout`.

    A killed run continues from its last checkpoint; on a CPU it ends in the same bytes as an undisturbed one.

    Args:
        extra: the embed stages of further vectors that the generator needs, by name.
        validated: the train stage of the same options with holdout, which says after how many epochs to end.

    Returns:
        `out`, with config.json, model.safetensors and training.jsonl; generation_config.json and
        input_module.safetensors where the family has them, search.json where it has an item head.

    Raises:
        ArtifactError: an input is missing or damaged, or `out` holds a run of another configuration.
        TigerrecError: the vectors that the generator reads are missing or of other items, the loss is not finite,
            or the tracker has refused the run.
    """
    from tigerrec.models.loading import save_generator
    from tigerrec.runtime.devices import environment, resolve_device
    from tigerrec.training.checkpoints import Checkpoints
    from tigerrec.training.item_weight import choose
    from tigerrec.training.loop import Trainer, fit, select
    from tigerrec.training.tracking import tracked_run

    started = time.perf_counter()
    histories, semantic_ids = load_inputs(prepared, tokenized)
    training, seed = config.training, derived_seed(config.seed, "weights")
    if not training.holdout:
        histories = histories.whole()
    device = resolve_device(training.device)
    further = {} if extra is None else dict(extra)
    vectors = _vectors(further, len(semantic_ids.codes)) if config.generator.needs else None
    model = config.generator.new(semantic_ids, ENCODER_MASK[training.examples], seed, vectors).to(device)
    trainer = Trainer(model, histories, config)
    if validated is not None:
        trainer.end_after(_chosen_epochs(validated, training))
    runs_under = environment(device, training.precision) | {"processes": distributed.world_size()}
    counts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "examples": len(trainer.examples),
        "targets": trainer.n_targets,
        "steps_per_epoch": trainer.steps_per_epoch,
    }
    sizes = (
        f"{trainer.n_targets:,} targets in {len(trainer.examples):,} examples, {trainer.last_step:,} steps, "
        f"{counts['parameters'] / 1e6:.1f} M parameters"
    )
    logger.info("training on %s, %s, %s", sizes, device, runs_under["precision"])
    inputs = {"prepare": prepared, "tokenize": tokenized} | further
    if validated is not None:
        inputs["validated"] = validated
    identity = {"config": describe(config), "inputs": input_records(inputs)}
    plain_identity = json.loads(canonical_json(identity))
    if training.batch_scope == "process":
        plain_identity["processes"] = distributed.world_size()
    with tracked_run(training.tracker, out, identity["config"]) as tracked:
        checkpoints = Checkpoints(out / "checkpoint", plain_identity, runs_under, tracked)
        fit(trainer, checkpoints, histories)
        selected = select(trainer, checkpoints, histories)
        weights: dict[str, float] = {}
        if model.scores_items and not training.holdout:
            weights = _chosen_weights(validated)
        elif model.scores_items:
            users = validation_sample(histories, training.validation_users, config.seed)
            weights = choose(model, histories, users, training, checkpoints)
        if tracked is not None:
            tracked.show_selected(checkpoints.state.step, selected)
    state = checkpoints.state

    def write() -> None:
        with writing(out, "train", config, inputs, started=started) as files:
            final = out / "checkpoint" / "final"
            remove_tree(final)
            for path in save_generator(model, final):
                files.adopt(path, path.name)
            if weights:
                files.json(CHOSEN, weights)
            with files.create("training.jsonl", measured=True) as path:
                path.write_text("".join(json.dumps(line) + "\n" for line in state.log))
            run = {"steps": state.step, "training_seconds": state.seconds, "environments": state.environments}
            files.provenance = runs_under | counts | run | {"selected": selected}
        remove_tree(out / "checkpoint")

    distributed.agreed(write)
    return out


def _chosen_epochs(validated: Path, training: Training) -> float:
    """After how many epochs the weights stood that a train stage chose on validation."""
    provenance = open_stage(validated, "train").provenance
    step_targets = training.step_targets(provenance.get("processes", 1))
    of_older_runs = math.ceil(provenance["targets"] / step_targets)  # which do not say, and mostly have as many
    epochs = provenance["selected"]["step"] / provenance.get("steps_per_epoch", of_older_runs)
    logger.info("training on everything, %.3g of %d epochs as %s chose", epochs, training.epochs, validated)
    return float(epochs)


def _chosen_weights(validated: Path | None) -> dict[str, float]:
    """What the item head counts beside the tree: as a train stage chose it, or as much."""
    if validated is None:
        return dict.fromkeys(WEIGHED, 1.0)
    return dict(read_json(validated, CHOSEN, dict.fromkeys(WEIGHED, float)))


def _vectors(further: Mapping[str, Path], n_items: int) -> np.ndarray:
    if VECTORS not in further:
        raise TigerrecError("The generator reads item vectors, and none were given; give extra={'vectors': <folder>}.")
    vectors = load_embeddings(further[VECTORS])
    if len(vectors) != n_items:
        raise StaleError(
            f"{further[VECTORS]} has {len(vectors)} vectors for {n_items} items; build it again with `overwrite=embed`."
        )
    return vectors
