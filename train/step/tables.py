"""What a step gathers row by row for its active latents: weights, inputs and errors, in the precision asked for."""

from torch import Tensor

from store.sparse.scan import Candidates
from store.sparse.switch import kernels_of
from train.config import TrainConfig
from train.parallel import Latents


def as_table(rows: Tensor, config: TrainConfig, candidates: Candidates, shared: Latents) -> Tensor:
    """The rows as they are gathered. In bfloat16 they take half the bytes where Triton's kernels read them. Other kernels
    read float32, where they are only rounded: all kernels work with the same numbers.

    candidates: a search in float32 reads float32.
    shared: the processes that share latents, which decode by PyTorch's operators.
    """
    if config.tables == "float32":
        return rows
    low = rows.bfloat16()
    halved = kernels_of(rows.device) == "triton" and candidates == "bfloat16" and shared.world == 1
    return low if halved else low.float()
