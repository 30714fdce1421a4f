"""Residual vector quantisation of the vectors themselves, codebooks learned by gradient, without an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.tokenizers import Codes, State, check_least
from tigerrec.tokenizers.assignments import Assignment, Nearest
from tigerrec.tokenizers.autoencoder import Progress, optimise, restored, standardisation, standardised
from tigerrec.tokenizers.codebooks import INITS, decode_residuals, encode_residuals, in_blocks, residual_distances
from tigerrec.tokenizers.estimators import Estimator, StraightThrough
from tigerrec.tokenizers.learned_codebooks import Codebooks, Gradient
from tigerrec.tokenizers.residual import ResidualQuantizer, check_learning

if TYPE_CHECKING:
    import torch


@options
class RVQ:
    """Residual codebooks of standardised vectors, moved by the gradient of the squared error that each level leaves.

    Args:
        levels: the number of codes an item.
        codebook_size: the number of codewords a level.
        init: where codewords begin, as in `fit_codebook`.
        epochs: passes over all items.
        batch_size: items a step.
        learning_rate: the largest learning rate of AdamW; it decays to 0 as a cosine.
        restart_share: the share of the epochs, from the first on, after which codes that no item used are moved to
            random residuals.
    """

    family: ClassVar[str] = "rvq"
    needs: ClassVar[tuple[str, ...]] = ()
    assigns_jointly: ClassVar[bool] = False
    estimator: ClassVar[Estimator] = StraightThrough()
    codebooks: ClassVar[Codebooks] = Gradient()
    assignment: ClassVar[Assignment] = Nearest()
    levels: int = 3
    codebook_size: int = 256
    init: str = "kmeans++"
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 3e-3
    restart_share: float = 0.7

    def __post_init__(self) -> None:
        check_least(self, levels=1, codebook_size=2, epochs=1, batch_size=1)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        check_learning(self, INITS)

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """The number of codes a level."""
        return (self.codebook_size,) * self.levels

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn `codebook_<level>` (k, D), k ≤ `codebook_size`, for vectors less `mean` over `std` (D,); and the codes,
        int32 (I, L), under them."""
        scale = standardisation(vectors)
        state = {**scale, **train(self, standardised(scale, vectors), seed)}
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), each level the codeword nearest to the residual."""
        codebooks = self._codebooks(state)
        return in_blocks(lambda block: encode_residuals(standardised(state, block), codebooks), vectors)

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D): the sum of the codewords."""
        return restored(state, decode_residuals(codes, self._codebooks(state)))

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Squared distances, float64 (n, `codebook_size`), of what the codes before leave over to the codewords of the
        next level; inf where there is none."""
        rows = in_blocks(lambda block: standardised(state, block), vectors)
        return residual_distances(rows, codes, self._codebooks(state), self.codebook_size)

    def _codebooks(self, state: State) -> list[np.ndarray]:
        return [state[f"codebook_{level}"] for level in range(self.levels)]


def train(tokenizer: RVQ, rows: np.ndarray, seed: int) -> State:
    """The codebooks learned from standardised rows, float32 (I, D).

    Raises:
        TokenizeError: the loss is no longer finite.
    """
    import torch

    data = torch.from_numpy(rows)
    quantizer = ResidualQuantizer(tokenizer, rows, beta=0.0, seed=seed)

    def begin_epoch(progress: Progress) -> None:
        quantizer.begin_epoch()

    def step(items: torch.Tensor, progress: Progress) -> torch.Tensor:
        return quantizer.quantize(data[items], progress)[2]

    def end_epoch(progress: Progress) -> None:
        quantizer.end_epoch(lambda: data, progress)

    optimise(
        tokenizer,
        [{"params": quantizer.codebooks.parameters()}],
        len(data),
        seed,
        step,
        before_epoch=begin_epoch,
        after_epoch=end_epoch,
    )
    return quantizer.state()
