"""How many sequences the model runs at once: on a GPU what its memory is made for."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harvest.config import SITES
from harvest.model.language_model import LanguageModel
from store.devices import total_bytes
from store.errors import Refused

MOST_TOKENS = 16_384
"""Of a batch that nobody asked for: the products of more would hardly be faster."""
SHARE = 4
"""A batch may take this part of what the weights leave: shards may take as much (space.rows_fit_on_device)."""
FLOAT = 4
RESIDUAL = 8
"""Vectors as wide as the residual stream that are alive at once in a block, beside sites."""
MLP = 3
"""The same of those as wide as the MLP."""
CHECKED = 8
"""The same in float32, while the first batch's sites are added up."""


def bytes_of_sequence(model: LanguageModel, n_layers: int, context: int) -> int:
    """Bytes that a sequence takes on the device at most, while the sites of so many layers are taken.

    All five sites of every layer, as of the first batch, and the most of: the MLP, attention to `context` tokens, which
    adds up in float32, and the check that the sites add up.
    """
    config = model.bridge.cfg
    item = model.whole.dtype.itemsize
    width = model.d_model
    kept = item * width * (RESIDUAL + len(SITES) * n_layers)
    attention = config.n_heads * context * (2 * FLOAT + 2 * item)
    return context * (kept + max(MLP * item * (config.d_mlp or 4 * width), attention, CHECKED * FLOAT * width))


def sequences_that_fit(model: LanguageModel, n_layers: int, context: int) -> int | None:
    """A power of two, up to MOST_TOKENS; None on a device whose memory is not known, such as a CPU.

    It goes by the memory that the GPU has, not by what is free: GPUs of one kind then run the same batches, whatever else
    they do, and a batch's size can change last bits.
    """
    weights: Counter[torch.device] = Counter()
    for each in model.whole.parameters():
        weights[each.device] += each.nbytes
    left = [total - taken for device, taken in weights.items() if (total := total_bytes(device)) is not None]
    if len(left) < len(weights):
        return None
    most = min(min(left) // SHARE // bytes_of_sequence(model, n_layers, context), MOST_TOKENS // context)
    return 1 << max(1, most).bit_length() - 1


@contextmanager
def within_memory(sequences: int) -> Iterator[None]:
    """Refused, with a cure, where a GPU's memory does not hold so many sequences at once."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        cure = f"--batch-sequences {sequences // 2}" if sequences > 1 else "--device-map auto, or a smaller --context"
        raise Refused(
            f"batch_sequences is {sequences}, which the GPU's memory does not hold ({str(error).splitlines()[0][:200]}); "
            f"finished shards are kept: give {cure}"
        ) from None
