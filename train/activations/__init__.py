"""Activation functions in training, one file a kind"""

from train.activations.base import Activation
from train.activations.batchtopk import BatchTopK
from train.activations.jumprelu import JumpReLU
from train.activations.l1 import Gated, ReLU
from train.activations.topk import TopK

ACTIVATIONS: dict[str, type[Activation]] = {
    "batchtopk": BatchTopK,
    "topk": TopK,
    "relu": ReLU,
    "jumprelu": JumpReLU,
    "gated": Gated,
}
