"""The unembedding of a language model, a slice of the vocabulary at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from harvest.model.language_model import LanguageModel
from store.devices import of_kind

SLICE = {"cpu": 4096, "cuda": 65_536}
"""Tokens of the vocabulary at once, by kind of device."""


@dataclass(frozen=True)
class Unembedding:
    weight: Float[Tensor, "vocabulary d"]
    softcap: float | None = None
    """The model bends its logits to softcap * tanh(logit / softcap), where it has a softcap (Gemma 2)."""
    bias: Float[Tensor, " vocabulary"] | None = None

    @classmethod
    def of(cls, model: LanguageModel) -> "Unembedding":
        whole = model.whole
        head = cast(torch.nn.Linear, whole.get_output_embeddings())
        bias = getattr(head, "bias", None)
        softcap = getattr(whole.config.get_text_config(), "final_logit_softcapping", None)
        return cls(head.weight.detach(), softcap, None if bias is None else bias.detach())

    def slices(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Weights and biases, some tokens of the vocabulary at a time."""
        size = of_kind(SLICE, self.weight.device)
        biases = repeat(None) if self.bias is None else self.bias.split(size)
        return zip(self.weight.split(size), biases, strict=False)

    def capped(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Logits as the model bends them; in place, unless they are to be differentiated."""
        if self.softcap is None:
            return logits
        if logits.requires_grad:
            return torch.tanh(logits / self.softcap) * self.softcap
        return logits.div_(self.softcap).tanh_().mul_(self.softcap)
