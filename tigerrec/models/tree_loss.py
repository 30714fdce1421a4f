"""Cross-entropy of the tokens of items, each among the children of its prefix's node alone."""

from __future__ import annotations

import torch

FEW_CHOICES, SMALL_FAMILY = 8, 16


class FamilyCrossEntropy(torch.autograd.Function):
    """Cross-entropy of children, each among its siblings and itself, summed, in nats, float32; its gradient is made
    with the loss.

    The rows of a family are neighbours: its choices are one product of matrices, unless they are few and it is small,
    where those of all such families are one batch of products.

    Args:
        states: float32 (n, d), in the order of their families.
        rows: float32 (rows, d), the embeddings of all children.
        start: int64 (families + 1,): the rows of family f are `start[f]` .. `start[f + 1] - 1`.
        possible: bool (rows,): which children may be chosen; the others have no part in the loss.
        families: int64 (n,), ascending: from which family each choice is made.
        chosen: int64 (n,): the row that was chosen.
        label_smoothing: share of the target's probability spread over its family.
    """

    @staticmethod
    def forward(ctx, states, rows, start, possible, families, chosen, label_smoothing):  # type: ignore[no-untyped-def]
        sizes = start[families + 1] - start[families]
        present, counts = torch.unique_consecutive(families, return_counts=True)
        ends, widths = counts.cumsum(0), start[present + 1] - start[present]
        together = (counts >= FEW_CHOICES) | (widths > SMALL_FAMILY)
        bounds = torch.stack([ends - counts, ends, start[present], start[present + 1]])[:, together].T.tolist()
        single = (~together).repeat_interleave(counts).nonzero().squeeze(1)
        width = int(sizes[single].max()) if len(single) else 0
        of_single = (start[families[single], None] + torch.arange(width, device=start.device)).clamp(max=len(rows) - 1)

        scores = states.new_zeros(len(states), int(sizes.max()))
        for first, end, low, high in bounds:
            torch.mm(states[first:end], rows[low:high].T, out=scores[first:end, : high - low])
        of_rows = rows.index_select(0, of_single.flatten()).view(*of_single.shape, rows.shape[1])
        scores[single, :width] = torch.bmm(of_rows, states[single, :, None]).squeeze(2)

        places = torch.arange(scores.shape[1], device=scores.device)
        exists = (places < sizes[:, None]) & possible[(start[families, None] + places).clamp_(max=len(rows) - 1)]
        n_choices = exists.sum(1)
        log_probabilities = scores.masked_fill_(~exists, -torch.inf).log_softmax(1)
        labels = (chosen - start[families])[:, None]
        losses = log_probabilities.gather(1, labels).squeeze(1) * (label_smoothing - 1)
        difference = log_probabilities.exp()
        if label_smoothing:
            losses -= (log_probabilities.masked_fill(~exists, 0.0).sum(1) / n_choices) * label_smoothing
            difference -= exists * (label_smoothing / n_choices[:, None])
        difference.scatter_add_(1, labels, torch.full_like(labels, label_smoothing - 1, dtype=difference.dtype))

        states_gradient, rows_gradient = torch.empty_like(states), torch.zeros_like(rows)
        for first, end, low, high in bounds:
            of_family = difference[first:end, : high - low]
            torch.mm(of_family, rows[low:high], out=states_gradient[first:end])
            torch.mm(of_family.T, states[first:end], out=rows_gradient[low:high])
        of_row = difference[single, :width, None]
        states_gradient[single] = torch.bmm(of_row.mT, of_rows).squeeze(1)
        rows_gradient.index_add_(0, of_single.flatten(), (of_row * states[single, None]).flatten(0, 1))
        ctx.save_for_backward(states_gradient, rows_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        states_gradient, rows_gradient = ctx.saved_tensors
        return states_gradient * gradient, rows_gradient * gradient, None, None, None, None, None
