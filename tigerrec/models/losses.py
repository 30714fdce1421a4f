"""Cross-entropies whose gradients are made with the loss: fewer passes over the scores."""

from __future__ import annotations

import torch
from torch.nn import functional

IGNORED = -1
ROWS_AT_ONCE = 64  # whose scores of 12,000 items stay in a cache of 4 MB


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over rows, in nats, float32; its gradient, probability less label, is made with the loss:
    one pass over the logits instead of three.

    Args:
        logits: (n, classes).
        labels: int64 (n,); rows with the label `IGNORED` count nothing.
        label_smoothing: share of the target's probability spread over all classes.
    """

    @staticmethod
    def forward(ctx, logits, labels, label_smoothing):  # type: ignore[no-untyped-def]
        counts = (labels >= 0).float()
        labels = labels.clamp(min=0)[:, None]
        scores = logits.float()
        probabilities = scores.softmax(1)
        log_normaliser = scores.amax(1) - probabilities.amax(1).log()
        mean_scores = scores.mean(1) if label_smoothing else 0.0
        target_scores = scores.gather(1, labels).squeeze(1)
        losses = log_normaliser - (1 - label_smoothing) * target_scores - label_smoothing * mean_scores
        if label_smoothing:
            probabilities -= label_smoothing / logits.shape[1]
        probabilities.scatter_add_(1, labels, torch.full_like(labels, label_smoothing - 1, dtype=torch.float32))
        ctx.save_for_backward((probabilities.mul_(counts[:, None])).to(logits.dtype))
        return (losses * counts).sum()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (difference,) = ctx.saved_tensors
        return (difference * gradient).to(difference.dtype), None, None


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy over all classes of linear scores, summed over rows, in nats; its gradient is made with the loss,
    in the place of the scores.

    Args:
        states: (n, dim), whose type is that of the products.
        classes: float32 (n_classes, dim).
        bias: float32 (n_classes,), or None.
        targets: int64 (n,).
        label_smoothing: share of the target's probability spread over all classes.
    """

    @staticmethod
    def forward(ctx, states, classes, bias, targets, label_smoothing):  # type: ignore[no-untyped-def]
        weight = classes.to(states.dtype)
        scores = functional.linear(states, weight, None if bias is None else bias.to(states.dtype))
        loss = torch.zeros((), device=states.device)
        for rows, labels in zip(scores.split(ROWS_AT_ONCE), targets[:, None].split(ROWS_AT_ONCE), strict=True):
            probabilities = rows.float().softmax(1)
            likelihoods = probabilities.gather(1, labels)
            log_likelihoods = likelihoods.clamp_(min=torch.finfo(torch.float32).tiny).log()
            loss -= (1 - label_smoothing) * log_likelihoods.sum()
            if label_smoothing:
                log_normalisers = rows.gather(1, labels).float() - log_likelihoods
                loss -= label_smoothing * (rows.float().mean(1, keepdim=True) - log_normalisers).sum()
                probabilities -= label_smoothing / rows.shape[1]
            rows.copy_(probabilities.scatter_add_(1, labels, torch.full_like(likelihoods, label_smoothing - 1)))
        ctx.save_for_backward(scores, states, weight)
        return loss

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        difference, states, weight = ctx.saved_tensors  # the first: probability less label
        bias_gradient = difference.sum(0, dtype=torch.float32) * gradient if ctx.needs_input_grad[2] else None
        states_gradient = ((difference @ weight) * gradient).to(states.dtype)
        return states_gradient, (difference.mT @ states).float() * gradient, bias_gradient, None, None
