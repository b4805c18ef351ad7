import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from harvest.config import HarvestConfig
from tests.harvest.text.making import TEMPLATE, said


@pytest.fixture(scope="module")
def chatty(tiny_models, tmp_path_factory) -> Path:
    """The tiny Gemma 2 with a template, whose marker is a token of its own in an embedding that has room for it."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("chatty")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gemma2"])
    tokenizer.add_tokens(["<turn>", "\n"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(tiny_models["gemma2"])
    model.resize_token_embeddings(100)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chat(config, chatty, tmp_path) -> HarvestConfig:
    path = tmp_path / "chat.jsonl"
    rows = [{"messages": said(f"question {number}", "an answer " * (number % 5))} for number in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return replace(config, model=str(chatty), dataset=str(path), chat="messages")
