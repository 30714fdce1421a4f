"""The encoder of T5 under an output layer in which every node of the trie has an embedding, and a head of items."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Block, T5LayerNorm, T5PreTrainedModel

from tigerrec.data.batches import Batch
from tigerrec.models import masks, t5_stack
from tigerrec.models.base import ITEM_CAUSAL
from tigerrec.models.dropout import Dropout
from tigerrec.models.history_module import HistoryModule
from tigerrec.models.losses import LinearCrossEntropy
from tigerrec.models.tree_loss import FamilyCrossEntropy
from tigerrec.models.tree_nodes import Families, rows_by_prefix
from tigerrec.models.tree_search import TreeReader
from tigerrec.tokenizers.trie import Trie

INITIAL_DEVIATION = 0.02


class TreeConfig(T5Config):
    """The sizes of a `TreeNetwork`."""

    model_type = "t5_tree"


class Encoder(nn.Module):
    """The blocks of T5's encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            T5Block(config, has_relative_attention_bias=n == 0) for n in range(config.num_layers)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)


class PrefixBlock(nn.Module):
    """A feed-forward layer that adds to a state what it makes of it and of a prefix."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.layer_norm = T5LayerNorm(d_model)
        self.widen, self.narrow = nn.Linear(2 * d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)

    def forward(self, states: Tensor, prefixes: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The states (..., d) after the block, float32; prefixes are (..., d)."""
        read = torch.cat([t5_stack.normalise(self.layer_norm, states, dtype), prefixes.to(dtype)], dim=-1)
        hidden = t5_stack.linear(read, self.widen)
        hidden = t5_stack.DroppedRelu.apply(hidden, dropout.mask(hidden))
        return states + dropout(t5_stack.linear(hidden, self.narrow, scale=dropout.scale**2))


class Member(nn.Module):
    """One encoder with its embeddings of tokens, items and nodes, which are its output layer too."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        facts, d_model = config.tigerrec, config.d_model
        self.shared = nn.Embedding(config.vocab_size, d_model)
        self.code_projection = nn.Linear(len(facts["level_sizes"]) * d_model, d_model, bias=False)
        self.item_embeddings = nn.Embedding(facts["n_items"], d_model)
        self.node_embeddings = nn.Embedding(facts["n_nodes"], d_model) if facts["n_nodes"] else None
        if facts["vector_size"]:
            self.vector_projection = nn.Linear(facts["vector_size"], d_model, bias=False)
        self.encoder = Encoder(config)
        self.prefix_blocks = nn.ModuleList(PrefixBlock(d_model, config.d_ff) for _ in range(facts["decoder_layers"]))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=INITIAL_DEVIATION)
        if self.node_embeddings is not None:
            nn.init.zeros_(self.node_embeddings.weight)
        self.input_scale = d_model**0.5

    def encode(
        self, items: Tensor, tokens: Tensor, table: Tensor, visible: Tensor, dtype: torch.dtype, dropout: Dropout
    ) -> Tensor:
        """The encoder's output, float32 (B, n, d).

        Args:
            items: int64 (B, n), all of them items.
            tokens: int64 (B, n, T), theirs.
            table: float32 (I, d), see `TreeT5.item_tables`.
            visible: bool, which positions a position sees, as in `t5_stack.encoded_states`.
        """
        codes = functional.embedding(tokens, self.shared.weight).flatten(2) * self.input_scale
        projected = t5_stack.linear(codes.to(dtype), self.code_projection).float()
        embedded = projected + functional.embedding(items, table) * self.input_scale
        return t5_stack.encoded_states(self, embedded, visible, dtype, dropout)

    def rows(self, token_of_row: Tensor, dropout: Dropout) -> Tensor:
        """The embedding of each child in the families of training, that of its code and, where nodes have one, its own,
        float32 (rows, d)."""
        codes = functional.embedding(token_of_row, self.shared.weight)
        return codes if self.node_embeddings is None else codes + dropout(self.node_embeddings.weight * dropout.scale)

    def nodes(self, token: Tensor, row: Tensor) -> Tensor:
        """The embeddings of nodes, float32 (n, d), of last tokens int64 (n,) and rows int64 (n,), -1 where a node has
        none."""
        codes = functional.embedding(token, self.shared.weight)
        if self.node_embeddings is None:
            return codes
        return codes + functional.embedding(row.clamp(min=0), self.node_embeddings.weight).masked_fill(
            (row < 0)[:, None], 0.0
        )


class TreeNetwork(T5PreTrainedModel):
    """The weights of a `TreeT5`."""

    config_class = TreeConfig

    def __init__(self, config: TreeConfig) -> None:
        super().__init__(config)
        facts = config.tigerrec
        self.members = nn.ModuleList(Member(config) for _ in range(facts["members"]))
        if facts["vector_size"]:
            self.vectors = nn.Parameter(torch.zeros(facts["n_items"], facts["vector_size"]), requires_grad=False)


class TreeT5(HistoryModule):
    """A `TreeNetwork` with the trie that it was trained on.

    Its members are trained side by side, each from its own random beginning and on the batches of an order of its own,
    and scored as one by the mean of their logits (Lakshminarayanan et al. 2017, arXiv 1612.01474, with a mean of logits
    in the place of one of probabilities).

    Args:
        network: the weights.
        tokens: int64 (I, T), row = item index: the items of training, then others that it never saw.
        families: of the trie of the items of training.
        vectors: of the others, float32 (n, D), where the network reads vectors of items.
    """

    start: Tensor
    token_of_row: Tensor
    possible: Tensor
    family_of_item: Tensor
    row_of_item: Tensor
    further_vectors: Tensor

    def __init__(
        self, network: TreeNetwork, tokens: np.ndarray, families: Families, vectors: np.ndarray | None = None
    ) -> None:
        super().__init__(tokens)
        self.network, self.families = network.eval(), families
        further = np.zeros((0, self.facts["vector_size"]), np.float32) if vectors is None else vectors
        self.register_buffer("further_vectors", torch.from_numpy(further), persistent=False)
        arrays = {
            "start": families.start,
            "token_of_row": families.token,
            "family_of_item": families.of_item,
            "row_of_item": rows_by_prefix(tokens, families.row_of_item),
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array.astype(np.int64)), persistent=False)
        self.register_buffer("possible", torch.ones(len(families.token), dtype=torch.bool), persistent=False)

    @property
    def stock(self) -> Any:
        """The weights, as transformers saves them."""
        return self.network

    @property
    def dropout_rate(self) -> float:
        """The probability of dropout in training."""
        return float(self.network.config.dropout_rate)

    @property
    def positions_per_item(self) -> int:
        """Encoder positions of one item."""
        return 1

    def n_tokens(self, n_read: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
        """Encoder positions and choices of tokens that pass the model for training examples, int64 (n,)."""
        return n_read + n_targets * self.n_levels

    @property
    def members(self) -> list[Member]:
        """The networks that are scored as one."""
        return list(self.network.members)

    def token_embeddings(self) -> list[Tensor]:
        """The embeddings of tokens."""
        return [member.shared.weight for member in self.members]

    def item_embeddings(self) -> list[Tensor]:
        """The embeddings of items."""
        return [member.item_embeddings.weight for member in self.members]

    @torch.no_grad()
    def keep_only(self, items: Tensor, learned: Tensor) -> None:
        """As in `HistoryModel.keep_only`; nor do nodes above no item of training, int64 (n,), have a part in it."""
        super().keep_only(items, learned)
        rows = self.row_of_item[items]
        self.possible.zero_()[rows[rows >= 0]] = True

    def member_parameters(self) -> list[list[nn.Parameter]]:
        """What each member learns."""
        return [list(member.parameters()) for member in self.members]

    def encode(self, member: Member, items: Tensor, table: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """A member's encoder output for histories of item indices (B, n), padded on the right with `NO_ITEM`, float32
        (B, n, d); the table is its `item_table`."""
        if self.facts["encoder_mask"] == ITEM_CAUSAL:
            visible = masks.item_causal(items.shape[1], 1, items.device)
        else:
            visible = masks.of_items(items, 1).bool()[:, None, None, :]
        items = items.clamp(min=0)
        return member.encode(items, self.tokens[items], table, visible, dtype, dropout)

    @property
    def scores_vocabulary(self) -> bool:
        """All probability lies on items that exist."""
        return False

    @property
    def scores_items(self) -> bool:
        """Whether an item head was trained."""
        return bool(self.facts["item_loss"] > 0)

    @property
    def reads_vectors(self) -> bool:
        """Whether the table of items has projected vectors."""
        return bool(self.facts["vector_size"])

    def item_table(self, member: Member, dtype: torch.dtype) -> Tensor:
        """A member's embedding of every item, float32 (I, d): what was learned of it alone, zeros where training never
        saw it, plus its projected vector where the network reads vectors."""
        weight = member.item_embeddings.weight
        table = functional.pad(weight, (0, 0, 0, len(self.tokens) - len(weight)))
        if not self.reads_vectors:
            return table
        vectors = (
            torch.cat([self.network.vectors, self.further_vectors])
            if len(self.further_vectors)
            else self.network.vectors
        )
        return table + t5_stack.linear(vectors.to(dtype), member.vector_projection).float()

    def losses(
        self, batch: Batch, dtype: torch.dtype, dropout: Dropout, *, label_smoothing: float = 0.0,
        known: Tensor | None = None, member: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Summed cross-entropies of a batch's targets by a member, in nats: of their Semantic IDs, and of the next item
        among those `known`, or 0."""
        network = self.members[member]
        table = self.item_table(network, dtype)
        encoded = self.encode(network, batch.items, table, dtype, dropout)
        exists = batch.targets >= 0
        targets = batch.targets[exists]
        places = (batch.n_visible - 1).expand_as(batch.targets)[exists]
        states = encoded[exists.nonzero()[:, 0], places]
        token_loss = self.token_loss(network, states, targets, dtype, dropout, label_smoothing)
        if known is None:
            return token_loss, torch.zeros_like(token_loss)
        labels = torch.searchsorted(known, targets)
        return token_loss, LinearCrossEntropy.apply(states.to(dtype), table[known], None, labels, label_smoothing)

    def token_loss(
        self, member: Member, states: Tensor, targets: Tensor, dtype: torch.dtype, dropout: Dropout,
        label_smoothing: float,
    ) -> Tensor:  # fmt: skip
        """A member's cross-entropy of targets (n,) after states (n, d), summed over their tokens."""
        if not len(self.token_of_row):
            return states.sum() * 0.0
        rows = member.rows(self.token_of_row, dropout.at(self.facts["node_dropout"]))
        families = self.family_of_item[targets]
        order = families.flatten().argsort(stable=True)
        order = order[families.flatten()[order] >= 0]
        target, level = order // self.n_levels, order % self.n_levels
        chosen = self.row_of_item[targets[target], level]
        states = states[target]
        if len(member.prefix_blocks):
            states = self.prefix_states(member, states, targets[target], level, rows, dtype, dropout)
        return FamilyCrossEntropy.apply(
            states, rows, self.start, self.possible, families.flatten()[order], chosen, label_smoothing
        )

    def prefix_states(
        self, member: Member, states: Tensor, targets: Tensor, level: Tensor, rows: Tensor, dtype: torch.dtype,
        dropout: Dropout,
    ) -> Tensor:  # fmt: skip
        """A member's states for the token of some level, int64 (n,), of targets (n,), after states (n, d)."""
        tokens, own = self.tokens[targets], self.row_of_item[targets]
        codes = functional.embedding(tokens, member.shared.weight)
        embedded = torch.where((own >= 0)[:, :, None], functional.embedding(own.clamp(min=0), rows), codes)
        before = torch.arange(self.n_levels, device=level.device) < level[:, None]
        prefixes = (embedded * before[:, :, None]).sum(1)
        for block in member.prefix_blocks:
            states = block(states, prefixes, dtype, dropout)
        return states

    def unseen_items(self) -> Tensor:
        """The items that training never saw, int64 (n,)."""
        weight = self.item_embeddings()[0]
        learned = functional.pad((weight != 0).any(1), (0, len(self.tokens) - len(weight)))
        return (~learned).nonzero().squeeze(1)

    def along(self, trie: Trie) -> TreeReader:
        """The model with the embeddings of a trie's nodes."""
        return TreeReader(self, trie)

    def with_items(self, tokens: np.ndarray, vectors: np.ndarray | None = None) -> TreeT5:
        """The same model with further items after its own, of tokens int64 (n, T), without embeddings of their own; of
        vectors float32 (n, D) where it reads vectors.

        Raises:
            ValueError: it reads vectors, and there are none, or of another shape.
        """
        size = self.facts["vector_size"]
        if self.reads_vectors and (vectors is None or vectors.shape != (len(tokens), size)):
            given = "none" if vectors is None else f"of shape {vectors.shape}"
            raise ValueError(f"the generator reads item vectors of {size} numbers; those of the new items are {given}")
        further = np.concatenate([self.further_vectors.cpu().numpy(), vectors]) if self.reads_vectors else None
        tokens = np.concatenate([self.tokens.cpu().numpy(), tokens])
        return TreeT5(self.network, tokens, self.families, further).to(self.device)
