"""Cheap dropout is dropout; the swapped model computes what the stock model does."""

from __future__ import annotations

import pytest
import torch

from tigerrec.dropout import drop, use_cheap_dropout
from tigerrec.generator import T5
from tigerrec.semantic_ids import TokenLayout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_scale_and_independence(p, dtype):
    torch.manual_seed(0)
    dropped = drop(torch.ones(1000, 999, dtype=dtype), p)
    kept = dropped != 0
    share = 1 - kept.float().mean().item()
    assert abs(share - p) < 0.003
    assert torch.allclose(dropped[kept].float(), torch.tensor(1 / (1 - p)), rtol=0.01)
    lanes = kept.flatten()[:998_000].view(-1, 4).float()
    assert torch.allclose(torch.corrcoef(lanes.T), torch.eye(4), atol=0.01)
    assert abs(kept.float().mean(0).std().item() - (p * (1 - p) / 1000) ** 0.5) < 0.002


def test_gradient_passes_where_values_do():
    torch.manual_seed(0)
    values = torch.randn(50, 50, requires_grad=True)
    dropped = drop(values, 0.3)
    dropped.sum().backward()
    assert torch.allclose(values.grad, torch.where(dropped != 0, 1 / 0.7, 0.0))


def test_zero_probability_changes_nothing():
    values = torch.randn(3)
    assert drop(values, 0.0) is values


def test_the_swapped_model_is_the_stock_model_in_evaluation_and_random_in_training():
    layout = TokenLayout((5, 5), (5, 5, 8))
    stock, swapped = (T5(num_layers=2, d_model=16, num_heads=2, d_kv=8, d_ff=16, dropout_rate=0.5).new(layout, "bidirectional", 0) for _ in range(2))
    use_cheap_dropout(swapped)
    inputs = {
        "input_ids": torch.tensor([[1, 6, 11], [2, 7, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "decoder_input_ids": torch.tensor([[0, 1, 6], [0, 2, 7]]),
    }
    assert torch.allclose(stock.eval()(**inputs).logits, swapped.eval()(**inputs).logits, atol=1e-6)
    swapped.train()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(swapped(**inputs).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)
    assert list(stock.state_dict()) == list(swapped.state_dict())
