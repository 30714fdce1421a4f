"""T5 with an output layer that knows the trie: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import Field

from tigerrec.config import BelowOne, NotNegative, options
from tigerrec.models.base import ITEMS, VECTORS, DropoutRate, EncoderMask, Layers, Size
from tigerrec.tokenizers.ids import PAD, SemanticIds

if TYPE_CHECKING:
    import numpy as np

    from tigerrec.models.t5_tree_model import TreeT5

SIZES = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "dropout_rate")
READING = ("max_items", "decoder_layers", "members", "node_dropout", "item_loss")


@options
class T5Tree:
    """The encoder of T5 (Raffel et al., 2020, arXiv 1910.10683), an embedding of every node of the trie, and a head
    that scores items as a whole.

    Attributes:
        num_layers: blocks in the encoder.
        decoder_layers: feed-forward blocks that read the prefix at each level; with 0 all levels read the encoder's
            output alone.
        members: networks of this kind that are trained side by side and scored as one, each with weights of its own.
        d_model: width of the hidden states.
        num_heads: attention heads a layer.
        d_kv: width of one head.
        d_ff: width of the feed-forward layers.
        dropout_rate: dropout of states.
        node_embeddings: give each node of the trie an embedding beside that of its code.
        node_dropout: dropout of the nodes' embeddings.
        max_items: how many of a history's last items the encoder reads.
        item_loss: weight of the loss by which the encoder's output predicts the next item among all.
        item_vectors: add the projection of a vector, of any embedder, to the embedding of an item, so that items are
            known that training never saw.
    """

    family: ClassVar[str] = "t5_tree"

    num_layers: Layers = 2
    decoder_layers: int = Field(default=0, ge=0, le=2**4)
    members: int = Field(default=1, ge=1, le=2**6)
    d_model: Size = 128
    num_heads: Size = 4
    d_kv: Size = 32
    d_ff: Size = 512
    dropout_rate: DropoutRate = 0.4
    node_embeddings: bool = True
    node_dropout: BelowOne = 0.3
    max_items: Size = 20
    item_loss: NotNegative = 1.0
    item_vectors: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Further vectors of items that it reads."""
        return (VECTORS,) if self.item_vectors else ()

    @property
    def scores_items(self) -> bool:
        """Whether it has an item head."""
        return self.item_loss > 0

    def window(self, stride: int) -> int:
        """Items of a training window: a target after `max_items` items or more, where there are as many."""
        return self.max_items + stride

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self:
        """The sizes that a `config.json` of this family describes."""
        reading = config["tigerrec"]
        if reading["encoder_mask"] not in get_args(EncoderMask):
            raise ValueError(f"its encoder_mask is {reading['encoder_mask']!r}")
        sizes = {name: config[name] for name in SIZES} | {name: reading[name] for name in READING}
        return cls(**sizes, node_embeddings=reading["n_nodes"] > 0, item_vectors=reading["vector_size"] > 0)

    def new(
        self, semantic_ids: SemanticIds, encoder_mask: EncoderMask, seed: int, vectors: np.ndarray | None = None
    ) -> TreeT5:
        """A model with random weights, whose nodes' embeddings are zeros."""
        import torch

        from tigerrec.models.t5_tree_model import TreeConfig, TreeNetwork, TreeT5
        from tigerrec.models.tree_nodes import Families

        layout = semantic_ids.layout
        families = Families.of(semantic_ids.tokens)
        config = TreeConfig(
            vocab_size=layout.vocab_size, d_model=self.d_model, d_kv=self.d_kv, d_ff=self.d_ff,
            num_layers=self.num_layers, num_heads=self.num_heads, dropout_rate=self.dropout_rate,
            pad_token_id=PAD, eos_token_id=None, tie_word_embeddings=False,  # type: ignore[call-arg]
        )  # fmt: skip
        config.tigerrec = {
            "encoder_mask": encoder_mask,
            "history": ITEMS,
            "decoder_layers": self.decoder_layers,
            "members": self.members,
            "node_dropout": self.node_dropout,
            "item_loss": self.item_loss,
            "max_items": self.max_items,
            "n_items": len(semantic_ids.codes),
            "vector_size": 0 if vectors is None else vectors.shape[1],
            "n_nodes": len(families.token) if self.node_embeddings else 0,
            "code_sizes": list(layout.code_sizes),
            "level_sizes": list(layout.level_sizes),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = TreeNetwork(config)
        if vectors is not None:
            with torch.no_grad():
                network.vectors.copy_(torch.from_numpy(vectors))
        return TreeT5(network, semantic_ids.tokens, families)
