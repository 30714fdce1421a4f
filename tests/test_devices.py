import pytest
import torch

from tests.tiny_run import GENERATORS, build_run
from tigerrec.runtime.devices import resolve_precision
from tigerrec.serving.explain import branches
from tigerrec.serving.recommender import Recommender
from tigerrec.serving.rules import Rules


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_hardware_has_it_but_not_on_intel_without_amx(monkeypatch, capabilities, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert resolve_precision(cpu, "auto") == chosen
    assert [resolve_precision(cpu, precision) for precision in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize("generator", GENERATORS)
def test_what_a_search_makes_is_made_where_the_model_is(generator, tmp_path):
    recommender = Recommender.from_pretrained(build_run(tmp_path, history=generator)["train"], device="cpu")
    rules = Rules.of(deny=["0000000001"])
    asked = [["0000000003", "0000000007"], ["0000000002"]]
    expected = recommender.recommend_batch(asked, 5, rules=rules), branches(recommender, asked[0], rules=rules)
    with torch.device("meta"):  # a tensor that is made without naming a device comes to nothing
        found = recommender.recommend_batch(asked, 5, rules=rules), branches(recommender, asked[0], rules=rules)
    assert found == expected
