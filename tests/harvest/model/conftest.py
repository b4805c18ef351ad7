"""A tokenizer and sequences for the tiny models of every family."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.making import BOS


@pytest.fixture(scope="module")
def tokenizer(tiny_models) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    ids = torch.randint(3, 95, (3, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS
    return ids
