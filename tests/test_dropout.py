"""Dropout: how often, which elements, and where gradients pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tigerrec.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_scale_and_independence(p, dtype):
    dropout = Dropout(p, seed=0)
    dropped = dropout(torch.ones(1000, 999, dtype=dtype))
    kept = dropped != 0
    share = 1 - kept.float().mean().item()
    assert abs(share - p) < 0.003
    assert (dropped[kept] == 1).all()
    assert dropout.scale * (1 - p) == pytest.approx(1)
    lanes = kept.flatten()[:998_000].view(-1, 4).float()
    assert torch.allclose(torch.corrcoef(lanes.T), torch.eye(4), atol=0.01)
    assert abs(kept.float().mean(0).std().item() - (p * (1 - p) / 1000) ** 0.5) < 0.002


def test_values_of_both_signs_and_of_any_shape_are_dropped_alike():
    values = torch.randn(3, 5, 7)
    dropped = Dropout(0.4, seed=1)(values)
    assert ((dropped == values) | (dropped == 0)).all()
    assert 0 < (dropped == 0).sum() < values.numel()


def test_gradient_passes_where_values_do():
    values = torch.randn(50, 50, requires_grad=True)
    dropped = Dropout(0.3, seed=0)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, (dropped != 0).float())


def test_masks_follow_the_seed_and_differ_from_one_another():
    values = torch.ones(40, 40)
    first, again, other = Dropout(0.5, 3), Dropout(0.5, 3), Dropout(0.5, 4)
    one = first(values)
    assert torch.equal(one, again(values))
    assert not torch.equal(one, first(values))
    assert not torch.equal(one, other(values))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_dropouts_of_another_probability_go_on_with_the_same_numbers(on_gpu, monkeypatch):
    like = torch.ones(40, 40)
    if on_gpu:  # its masks, drawn by this machine
        generator, rand = torch.Generator, torch.rand
        monkeypatch.setattr(torch, "Generator", lambda device: generator())
        monkeypatch.setattr(torch, "rand", lambda shape, device, generator: rand(shape, generator=generator))
        like = SimpleNamespace(device=torch.device("cuda"), shape=like.shape, element_size=lambda: 4, numel=like.numel)
    nothing = Dropout(0.0, 3)
    one, other = nothing.at(0.5).mask(like), nothing.at(0.5).mask(like)
    assert not torch.equal(one, other)


def test_zero_probability_changes_nothing():
    values = torch.randn(3)
    assert Dropout(0.0)(values) is values
