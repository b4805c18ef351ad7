"""One case of each architecture for all tests of sets."""

import pytest
from transformers import PreTrainedTokenizerFast

from tests.evaluate.sets.making import PARTS, Case, make_case

CASES = [pytest.param(part, marks=() if part != "GPTNeoXForCausalLM" else pytest.mark.slow) for part in PARTS]


@pytest.fixture(scope="package", params=CASES)
def case(request, tiny_models, text_file, tmp_path_factory) -> Case:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])
    return make_case(tmp_path_factory.mktemp("sets"), request.param, tokenizer, text_file)


@pytest.fixture(scope="package")
def gemma(tiny_models, text_file, tmp_path_factory) -> Case:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])
    return make_case(tmp_path_factory.mktemp("sets"), "Gemma2ForCausalLM", tokenizer, text_file)
