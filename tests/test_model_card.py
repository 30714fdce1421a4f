"""The metadata of a model card, as the Hugging Face Hub reads it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tests.tiny_run import build_run
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.prepare import prepare
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.serving.export import export
from tigerrec.serving.model_card import is_sample
from tigerrec.storage.contracts import read_json
from tigerrec.storage.stages import open_stage


def test_the_model_card_tells_the_hub_what_was_measured(tmp_path: Path) -> None:
    run = build_run(tmp_path / "runs")
    folder = run["train"] / "eval-full"
    config = EvaluateConfig(model="tiny", precision="fp32", device="cpu")
    evaluate(run["prepare"], run["tokenize"], run["train"], config, folder)
    card = ModelCard.load(export(run["train"], tmp_path / "export") / "README.md")
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.license_name) == ("other", "terms-of-the-data")
    assert (card.data.library_name, card.data.pipeline_tag) == ("tigerrec", None)
    assert card.data.tags == ["recommendation", "generative-retrieval", "semantic-ids", "t5"]
    assert card.data.model_name == "t5-packed-seed0"
    (row,) = (
        row
        for row in read_json(folder, "metrics.json")
        if (row["model"], row["hit"], row["seen"]) == ("tiny", "item", "masked")
    )
    args = {"evaluation": "eval-full", "scores": "codes", "hit": "item", "seen": "masked", "users": 50}
    assert card.data.eval_results == [
        EvalResult(
            "sequential-recommendation", "toy", "toy", name, row[name], task_name="sequential recommendation",
            dataset_split="test", metric_name=name.upper(), metric_args=args,
        )
        for name in ("hr@5", "ndcg@5", "hr@10", "ndcg@10")
    ]  # fmt: skip
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert again.text.startswith("\n# t5-packed-seed0 on toy\n")


def test_a_run_without_evaluation_has_no_results(tmp_path: Path) -> None:
    run = build_run(tmp_path / "runs")
    data = ModelCard.load(export(run["train"], tmp_path / "export") / "README.md").data.to_dict()
    assert data.keys() == {"license", "license_name", "library_name", "tags", "model_name"}


def test_only_the_sample_has_the_licence_of_the_software(folders: dict[str, Path], tmp_path: Path) -> None:
    sample = AmazonReviews(None, "reviews_Sample_5.json.gz", "meta_Sample.json.gz")
    prepare(sample, tmp_path / "shop")
    for folder, is_ours in ((tmp_path / "shop", True), (folders["prepare"], False)):
        assert is_sample(open_stage(folder, "prepare")) == is_ours
