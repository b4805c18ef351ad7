"""Activation functions in training, one file a kind; ACTIVATIONS names them all."""

from collections.abc import Callable

from store.sparse.scan import Candidates
from train.activations.batchtopk import BatchTopK
from train.activations.jumprelu import JumpReLU
from train.activations.l1 import Gated, ReLU
from train.activations.topk import TopK
from train.config import TrainConfig
from train.parallel import Ranks

ACTIVATIONS: dict[str, Callable[[TrainConfig, Candidates, Ranks], BatchTopK | TopK | ReLU | Gated | JumpReLU]] = {
    "batchtopk": BatchTopK,
    "topk": TopK,
    "relu": ReLU,
    "jumprelu": JumpReLU,
    "gated": Gated,
}
