"""The key-value cache of a decoder, and attention masks.

Shape suffixes: B batch, T new tokens, S tokens in the cache, H heads of keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.models.language_model_config import LanguageModelConfig


class KVCache:
    """The keys and values of earlier tokens: allocated once, filled in place.

    Rows may be padded on either side: padding is recorded, never attended to, and takes no
    position, so that a row continues exactly as it would alone.
    """

    def __init__(
        self, config: LanguageModelConfig, batch: int, capacity: int, like: Tensor
    ) -> None:
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_size)
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.valid_BS = torch.zeros(batch, capacity, dtype=torch.bool, device=like.device)
        self.count_B = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.length = 0
        self.context_length = config.context_length
        self.padded = False

    def append(self, mask_BT: Tensor | None, batch: int, steps: int) -> Tensor:
        """Make room for the next tokens and return their positions_BT.

        Raises:
            ValueError: the cache is full, or a row is longer than the model's context.
        """
        start, stop = self.length, self.length + steps
        if stop > self.valid_BS.shape[1]:
            raise ValueError(f"{stop} tokens do not fit a cache of {self.valid_BS.shape[1]}")
        padded = mask_BT is not None
        if mask_BT is None:
            mask_BT = self.valid_BS.new_ones(batch, steps)
        count_B = self.count_B + mask_BT.sum(1)
        # Reading the counts synchronizes the device: not while even padding would fit.
        if stop > self.context_length and int(count_B.max()) > self.context_length:
            longest = int(count_B.max())
            raise ValueError(f"{longest} tokens do not fit a context of {self.context_length}")
        self.valid_BS[:, start:stop] = mask_BT
        positions_BT = self.count_B[:, None] + mask_BT.cumsum(1) - 1
        self.count_B = count_B
        self.length = stop
        self.padded |= padded
        return positions_BT.clamp(min=0)

    def select_rows(self, rows: Tensor) -> None:
        """Keep only these rows (indices)."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.valid_BS = self.valid_BS[rows]
        self.count_B = self.count_B[rows]

    def mask(self, steps: int) -> Tensor | None:
        """Return the attention mask of the newest `steps` tokens, bool (B, 1, T, S); None if they
        attend to all keys."""
        if steps == 1 and not self.padded:
            return None
        return causal_padding_mask(self.valid_BS[:, : self.length], steps)

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values and return all of them (B, H, S, D)."""
        start = self.length - k_BHTD.shape[2]
        self.keys[layer, :, :, start : self.length] = k_BHTD
        self.values[layer, :, :, start : self.length] = v_BHTD
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]


def causal_padding_mask(valid_BS: Tensor, steps: int) -> Tensor:
    """Return the attention mask of the last `steps` of S tokens, bool (B, 1, T, S): real tokens up
    to themselves."""
    S = valid_BS.shape[1]
    key_S = torch.arange(S, device=valid_BS.device)
    query_T = key_S[S - steps :]
    own_TS = query_T[:, None] == key_S
    past_TS = query_T[:, None] >= key_S
    # A padding token attends to itself: an empty row would make the softmax NaN.
    return ((past_TS & valid_BS[:, None]) | own_TS)[:, None]


def block_diagonal_causal_mask(segments_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Return the attention mask within documents, bool (B, 1, T, T): a token attends to its own
    document up to itself, and with a mask only to real tokens."""
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    past_B1TT = same_BTT.tril()[:, None]
    if mask_BT is None:
        return past_B1TT
    return past_B1TT & causal_padding_mask(mask_BT.bool(), segments_BT.shape[1])
