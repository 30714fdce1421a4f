"""The driven stacks against transformers' own modules: values, gradients, and the distribution under dropout."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tigerrec.data.batches import Batch
from tigerrec.models import t5_stack
from tigerrec.models.dropout import Dropout
from tigerrec.models.losses import CrossEntropy
from tigerrec.models.t5 import T5
from tigerrec.tokenizers.ids import SemanticIds, TokenLayout


def stock_model(dropout_rate: float = 0.0) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50,
        d_model=32,
        d_kv=16,
        num_heads=2,
        d_ff=48,
        num_layers=2,
        dropout_rate=dropout_rate,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, 50, (3, 12), generator=generator)
    there = torch.arange(12) < torch.tensor([[8], [12], [5]])
    decoder_inputs = torch.cat(
        [torch.zeros(3, 1, dtype=torch.long), torch.randint(1, 50, (3, 3), generator=generator)], 1
    )
    return input_ids * there, there, decoder_inputs


def driven_logits(
    model, input_ids, there, decoder_inputs, dropout: Dropout, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    visible = there[:, None, None, :]
    encoded = t5_stack.encode(model, model.shared(input_ids), visible, dtype, dropout)
    return t5_stack.decode(model, encoded, decoder_inputs[:, None], visible, dtype, dropout)[:, 0]


def test_logits_and_all_gradients_are_those_of_the_stock_model(inputs):
    input_ids, there, decoder_inputs = inputs
    model = stock_model()
    expected = model(input_ids=input_ids, attention_mask=there.long(), decoder_input_ids=decoder_inputs).logits
    expected.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = driven_logits(model, *inputs, Dropout(0.0))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


def test_attention_to_one_position_is_that_of_the_stock_model_without_its_idle_weights(inputs):
    model, decoder_inputs = stock_model(), inputs[2]
    encoded = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    expected = model(encoder_outputs=(encoded,), decoder_input_ids=decoder_inputs).logits
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if name.startswith(("decoder", "shared"))
    }
    gradients = torch.autograd.grad(expected.square().mean(), [encoded, *parameters.values()])
    found = t5_stack.decode(model, encoded, decoder_inputs[:, None], None, torch.float32, Dropout(0.0))[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    own = torch.autograd.grad(found.square().mean(), [encoded, *parameters.values()], allow_unused=True)
    for name, stock, driven in zip(["encoded", *parameters], gradients, own, strict=True):
        if driven is None:
            assert "EncDecAttention" in name or "layer.1.layer_norm" in name
            driven = torch.zeros_like(stock)
        torch.testing.assert_close(driven, stock, atol=1e-6, rtol=1e-4)


def test_dropout_never_hides_a_history_of_one_position(inputs):
    """At this rate the weights of all heads would often be dropped together."""
    model, decoder_inputs = stock_model(), inputs[2]
    encoded = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    seen = []
    for seed in range(20):
        logits = t5_stack.decode(
            model, encoded, decoder_inputs[:, None, :1], None, torch.float32, Dropout(0.6, seed=seed)
        )
        seen.append(torch.autograd.grad(logits.square().sum(), encoded)[0].abs().sum(-1) > 0)
    assert torch.stack(seen).all()


def test_bf16_products_stay_near_the_exact_logits(inputs):
    model = stock_model()
    exact = driven_logits(model, *inputs, Dropout(0.0))
    rough = driven_logits(model, *inputs, Dropout(0.0), torch.bfloat16)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_under_dropout_logits_are_distributed_as_those_of_the_stock_model(inputs):
    """The same example many times over in one batch: each row has masks of its own."""
    rows = 4000
    model = stock_model(dropout_rate=0.3).train()
    input_ids, decoder_inputs = inputs[0][1:2].expand(rows, -1), inputs[2][1:2].expand(rows, -1)
    with torch.no_grad():
        stock = model(input_ids=input_ids, decoder_input_ids=decoder_inputs).logits
        driven = driven_logits(
            model, input_ids, torch.ones_like(input_ids, dtype=torch.bool), decoder_inputs, Dropout(0.3, seed=1)
        )
    error = (stock.var(0) / rows + driven.var(0) / rows).sqrt()
    assert ((stock.mean(0) - driven.mean(0)).abs() / error).max() < 5
    ratio = driven.std(0) / stock.std(0)
    assert 0.9 < ratio.min() < ratio.max() < 1.1
    assert abs(ratio.mean() - 1) < 0.01


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch(label_smoothing):
    logits = (3 * torch.randn(50, 20, generator=torch.Generator().manual_seed(0))).requires_grad_()
    labels = torch.randint(-1, 20, (50,), generator=torch.Generator().manual_seed(1))
    found = CrossEntropy.apply(logits, labels, label_smoothing)
    expected = torch.nn.functional.cross_entropy(
        logits, labels, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found * 0.3, logits)[0], torch.autograd.grad(expected * 0.3, logits)[0]
    )


def test_cross_entropy_of_a_hopeless_target_is_finite():
    loss = CrossEntropy.apply(torch.tensor([[0.0, 500.0]]), torch.tensor([0]), 0.0)
    assert loss.item() == 500.0


@pytest.mark.parametrize("bias_shape", [(1, 2, 5, 6), None])
def test_gradients_of_attention_under_dropout_are_those_of_plain_operations_with_the_same_mask(bias_shape):
    generator = torch.Generator().manual_seed(2)
    made = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).float().requires_grad_()
    queries, keys, values = made(3, 2, 5, 4), made(3, 2, 6, 4), made(3, 2, 6, 4)
    bias = made(*bias_shape) if bias_shape else None
    visible = torch.arange(6) <= torch.arange(5)[:, None]
    upstream = torch.randn(3, 2, 5, 4, generator=generator)
    inputs = [tensor for tensor in (queries, keys, values, bias) if tensor is not None]
    found = t5_stack.Attention.apply(queries, keys, values, bias, visible, Dropout(0.4, seed=3))
    found_gradients = torch.autograd.grad((found * upstream).sum(), inputs)
    kept = Dropout(0.4, seed=3)(torch.ones(3, 2, 5, 6))
    scores = queries @ keys.mT + (0 if bias is None else bias)
    expected = (scores.masked_fill(~visible, -torch.inf).softmax(-1) * kept) @ values
    torch.testing.assert_close(found, expected)
    for one, other in zip(found_gradients, torch.autograd.grad((expected * upstream).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", ["per user", "for all", "keys alone", "not at all"])
@pytest.mark.parametrize("biased", [False, True])
def test_the_kernel_of_the_search_gives_what_training_computes(biased, masked, dtype):
    generator = torch.Generator().manual_seed(2)
    made = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)
    queries, keys, values = made(3, 2, 5, 4), made(3, 2, 6, 4), made(3, 2, 6, 4)
    bias = 3 * torch.randn(1, 2, 5, 6, generator=generator) if biased else None
    visible = torch.arange(6) <= torch.arange(5)[:, None]
    visible = {
        "per user": (torch.rand(3, 1, 5, 6, generator=generator) > 0.5) | visible,
        "for all": visible,
        "keys alone": torch.tensor([True, False, True, True, False, False])[None, None, None],
        "not at all": None,
    }[masked]
    found = t5_stack.fused_attention(queries, keys, values, bias, visible)
    expected = t5_stack.Attention.apply(queries, keys, values, bias, visible, Dropout(0.0))
    assert found.dtype == dtype
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=rounding, rtol=rounding)


def test_gradients_of_relu_under_dropout_pass_where_its_result_is_positive():
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept = Dropout(0.4, seed=3)
    result = t5_stack.DroppedRelu.apply(values, kept.mask(values))
    expected = values.detach().relu() * Dropout(0.4, seed=3)(torch.ones(40, 30))
    assert torch.equal(result, expected)
    result.sum().backward()
    assert torch.equal(values.grad, (expected > 0).float())


@pytest.mark.parametrize("decoder_reads", ["all_items", "last_item"])
def test_a_training_step_reads_nothing_back_from_its_device(decoder_reads):
    """On the device `meta` there are no values: anything that waits for one, or mixes devices, fails."""
    codes = np.zeros((7, 2), np.int32)
    codes[:, 1] = np.arange(7)
    ids = SemanticIds(codes, TokenLayout((4,), (4, 8)))
    generator = T5(
        num_layers=1,
        d_model=16,
        num_heads=2,
        d_kv=8,
        d_ff=16,
        history="items",
        decoder_reads=decoder_reads,
        item_loss=1.0,
    )
    model = generator.new(ids, "item_causal", 0).to("meta")
    places = torch.zeros(3, 4, dtype=torch.long, device="meta")
    losses = model.losses(
        Batch(places, places, places[:1]), torch.bfloat16, Dropout(0.0), label_smoothing=0.1, known=places[0]
    )
    sum(losses).backward()
    assert model.t5.shared.weight.grad.device.type == model.inputs.item_embeddings.weight.grad.device.type == "meta"


def test_no_private_function_of_torch_is_called():
    sources = {path: path.read_text() for path in Path(t5_stack.__file__).parent.rglob("*.py")}
    assert {
        path.name: found for path, text in sources.items() if (found := re.findall(r"torch(?:\.\w+)*\._[a-z]\w*", text))
    } == {}
