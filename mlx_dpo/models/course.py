"""The course's TransformerLM as an MLX module, called like the models of mlx-lm.

A pre-norm transformer with learned positions, biases everywhere, exact GELU and an output layer
that shares the token embedding. Shapes: B rows, T new positions, D embedding, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

MODEL_TYPE = "g2c_transformer"  # in config.json of the MLX folder
SIZES = ("vocab_size", "embedding_dim", "num_layers", "num_heads", "max_seq_len", "hidden_dim")
_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class CourseArgs:
    """Sizes of a TransformerLM.

    Attributes:
        vocab_size: Rows of the token embedding, V.
        embedding_dim: D, a multiple of `num_heads`.
        num_layers: Blocks.
        num_heads: Attention heads of a block; each takes a contiguous slice of D.
        max_seq_len: Learned positions; no sequence may be longer.
        hidden_dim: Width of the feed-forward layer; 4 * D where the course does not say.
        model_type: Always `MODEL_TYPE`.

    Raises:
        ValueError: If a size is not a positive integer, or the heads don't divide D.
    """

    vocab_size: int
    embedding_dim: int
    num_layers: int
    num_heads: int
    max_seq_len: int
    hidden_dim: int
    model_type: str = MODEL_TYPE

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"embedding_dim {self.embedding_dim} is not a multiple of num_heads "
                f"{self.num_heads}"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "CourseArgs":
        """Take the sizes from a config; a missing or null `hidden_dim` is 4 * embedding_dim.

        Raises:
            ValueError: If one is missing or not a positive integer.
        """
        sizes = {name: config.get(name) for name in SIZES}
        if sizes["hidden_dim"] is None and type(sizes["embedding_dim"]) is int:
            sizes["hidden_dim"] = 4 * sizes["embedding_dim"]
        return cls(**sizes)  # type: ignore[arg-type]  # checked on construction


class Attention(nn.Module):
    """Causal self-attention with four separate projections."""

    def __init__(self, args: CourseArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        dim = args.embedding_dim
        self.num_heads = args.num_heads
        self.scale = (dim // args.num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """(B, T, D) to (B, T, D); `cache` holds the keys and values of earlier positions."""
        from mlx_lm.models.base import scaled_dot_product_attention

        queries, keys, values = (self._heads(part(x)) for part in (self.q, self.k, self.v))
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        mixed = scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=self.scale, mask=mask
        )
        joined: mx.array = self.out(mixed.transpose(0, 2, 1, 3).reshape(x.shape))
        return joined

    def _heads(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.num_heads, -1).transpose(0, 2, 1, 3)


class Block(nn.Module):
    """Attention, then two layers with a GELU between them, each on normed input and added."""

    def __init__(self, args: CourseArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ln1 = nn.LayerNorm(args.embedding_dim, eps=_LAYER_NORM_EPS)
        self.attention = Attention(args)
        self.ln2 = nn.LayerNorm(args.embedding_dim, eps=_LAYER_NORM_EPS)
        self.fc1 = nn.Linear(args.embedding_dim, args.hidden_dim)
        self.fc2 = nn.Linear(args.hidden_dim, args.embedding_dim)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attention(self.ln1(x), mask, cache)
        # The exact GELU, with erf: the tanh form differs in the fourth decimal.
        return x + self.fc2(nn.gelu(self.fc1(self.ln2(x))))


class Trunk(nn.Module):
    """Everything but the output layer."""

    def __init__(self, args: CourseArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.token_embed = nn.Embedding(args.vocab_size, args.embedding_dim)
        self.pos_embed = nn.Embedding(args.max_seq_len, args.embedding_dim)
        self.layers = [Block(args) for _ in range(args.num_layers)]
        self.ln_final = nn.LayerNorm(args.embedding_dim, eps=_LAYER_NORM_EPS)
        self.max_seq_len = args.max_seq_len

    def __call__(self, ids: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        """Ids (B, T) to normed hidden states (B, T, D)."""
        from mlx_lm.models.base import create_attention_mask

        caches = [None] * len(self.layers) if cache is None else cache
        hidden = self.token_embed(ids) + self.pos_embed(self._positions(ids, caches[0]))
        mask = create_attention_mask(hidden, caches[0])
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            hidden = layer(hidden, mask, layer_cache)
        normed: mx.array = self.ln_final(hidden)
        return normed

    def _positions(self, ids: mx.array, cache: Any) -> mx.array:
        """Position of each id: (T,), or (B, T) where every row has an offset of its own."""
        length = ids.shape[1]
        offset = 0 if cache is None else cache.offset
        if isinstance(offset, mx.array) and offset.ndim > 0:
            self._check_length(length)
            # Padding may reach past the last position. Reading there is undefined; its values never
            # count.
            positions = mx.arange(length) + mx.expand_dims(offset, -1)
            return mx.clip(positions, 0, self.max_seq_len - 1)
        self._check_length(int(offset) + length)
        return mx.arange(length) + offset

    def _check_length(self, length: int) -> None:
        if length > self.max_seq_len:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the model's max_seq_len "
                f"{self.max_seq_len}"
            )


class CourseModel(nn.Module):
    """A language model ``model(ids, cache=None) -> logits``.

    Args:
        args: Its sizes.
    """

    def __init__(self, args: CourseArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.args = args
        self.model_type = args.model_type
        self.model = Trunk(args)
        self.head_bias = mx.zeros((args.vocab_size,))

    def __call__(self, ids: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        """Logits of the next token at each position.

        Args:
            ids: int (B, T).
            cache: One key-value cache a layer, as mlx-lm makes them; its `offset` may be a vector
                with one offset for each row.

        Returns:
            (B, T, V), in the dtype of the weights.

        Raises:
            ValueError: If the cached and the new ids together are longer than `max_seq_len`. With
                an offset for each row the caller must check that; positions past the end count
                as padding.
        """
        hidden = self.model(ids, cache)
        logits: mx.array = self.model.token_embed.as_linear(hidden) + self.head_bias
        return logits

    @property
    def layers(self) -> list[Block]:
        """The blocks; mlx-lm makes one cache for each."""
        return self.model.layers
