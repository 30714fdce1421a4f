"""What transformers' own forward passes say of a generator, one user at a time: the slow way that the library's fast
ones are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tigerrec.models.t5_model import HistoryT5
from tigerrec.tokenizers.ids import PAD


def stock_logits(model, history: Tensor, targets: Tensor) -> Tensor:
    """The logits of some targets after one history, (m, T, vocabulary).

    Args:
        history: int64 (n,), item indices.
        targets: int64 (m, T), tokens.
    """
    if isinstance(model, HistoryT5):
        encoded, mask = (tensor.expand(len(targets), *tensor.shape[1:]) for tensor in model.read(history[None]))
        inputs = functional.pad(targets[:, :-1], (1, 0), value=PAD)
        return model.t5(encoder_outputs=(encoded,), attention_mask=mask, decoder_input_ids=inputs).logits
    input_ids = torch.cat([model.sequence(history[None]).expand(len(targets), -1), targets[:, :-1]], dim=1)
    logits = model.gpt2(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
    return logits[:, -targets.shape[1] :]


@torch.inference_mode()
def score_catalogue(model, items: Tensor, chunk: int = 4096) -> Tensor:
    """The log-probability of every item for every user, float32 (B, I).

    Args:
        items: int64 (B, n), histories of item indices, padded on the right with `NO_ITEM`.
        chunk: items scored at once.
    """

    def scores(history: Tensor, targets: Tensor) -> Tensor:
        log_probabilities = stock_logits(model, history, targets).log_softmax(-1)
        return log_probabilities.gather(2, targets[:, :, None]).sum((1, 2))

    chunks = model.tokens.split(chunk)
    return torch.stack([torch.cat([scores(row[row >= 0], targets) for targets in chunks]) for row in items])
