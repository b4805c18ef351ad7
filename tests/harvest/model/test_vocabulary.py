"""Tokenizers that know more ids than the model has embeddings."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from harvest.model.loading import load_model
from harvest.model.tokenizer import load_tokenizer
from store.errors import Refused
from tests.making import make_recipe


def with_tokens(model: Path, folder: Path, special: bool = False, **roles: str) -> Path:
    """A copy of a tiny model (98 embeddings, 98 tokens) whose tokenizer knows more."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["zebra", "zebu"], special_tokens=special)
    for role, token in roles.items():
        setattr(tokenizer, f"{role}_token", token)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> None:
    load_model(str(folder), 1, torch.device("cpu"), torch.float32)


def test_a_token_that_text_can_hold_and_the_model_cannot_is_refused(tiny_models, tmp_path):
    folder = with_tokens(tiny_models["gpt2"], tmp_path / "model")
    with pytest.raises(Refused, match=r"knows 'zebra' with id 98 and 1 more, but the model has 98 embeddings"):
        load(folder)


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_bos_or_eos_without_an_embedding_is_refused(tiny_models, tmp_path, role):
    folder = with_tokens(tiny_models["gpt2"], tmp_path / "model", special=True, **{role: "zebu"})
    with pytest.raises(Refused, match=rf"'zebu' with id 99 as {role.upper()}, but the model has 98 embeddings"):
        load(folder)


def test_a_special_token_that_text_never_gives_may_lie_beyond(tiny_models, tmp_path):
    load(with_tokens(tiny_models["gpt2"], tmp_path / "model", special=True))


def test_a_tokenizers_folder_that_is_not_there_is_no_name_on_the_hub(tmp_path):
    with pytest.raises(Refused, match="nowhere, which does not exist; give the folder that holds tokenizer.json"):
        load_tokenizer(make_recipe(), tmp_path / "nowhere")
