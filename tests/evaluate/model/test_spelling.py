"""The gradient of a letter's logit against the whole model with a hook, on a tiny model of each family."""

import pytest
import torch

from evaluate.metrics.tasks import Examples
from evaluate.model.spelling import in_prompts, letter_gradients, read
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from harvest.model.unembedding import Unembedding
from tests.making import BOS

CPU = torch.device("cpu")

LETTERS, RIGHT, PLACE = torch.tensor([40, 41, 42, 50]), torch.tensor([2, 0]), 4


@pytest.fixture(scope="module", params=["gemma2", "gpt2", pytest.param("gemma3", marks=pytest.mark.slow)])
def model(request, tiny_models) -> LanguageModel:
    return load_model(str(tiny_models[request.param]), 1, CPU, torch.float32)


def margin(model: LanguageModel, tokens: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The right letter's logit minus the mean of the others', with mlp_out moved at PLACE: from the start, with a hook."""

    def moved(act, hook):
        act = act.clone()
        act[:, PLACE] += shift
        return act

    with torch.no_grad():
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", moved)])[:, -1, LETTERS].double()
    chosen = logits.gather(1, RIGHT[:, None]).squeeze(1)
    return chosen - (logits.sum(1) - chosen) / 3


def test_gradients_are_what_a_small_change_does_to_the_whole_model(model):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 90, (2, 9), generator=generator)
    tokens[:, 0] = BOS
    tokens[:, :PLACE] = tokens[0, :PLACE]
    before = read(model, tokens[0, :PLACE])
    asked = (model, Unembedding.of(model), before, tokens[:, PLACE:], LETTERS, RIGHT)
    letter_gradients(*asked)  # leaves what was read once as it was
    source, target, gradient, logits = letter_gradients(*asked)
    sites = model.run(tokens)
    torch.testing.assert_close(source, sites["resid_mid"][:, PLACE])
    torch.testing.assert_close(target, sites["mlp_out"][:, PLACE])
    assert logits.shape == (2, 4)
    for _ in range(3):
        direction = torch.randn(2, 16, generator=generator)
        step = 1e-2
        change = (margin(model, tokens, step * direction) - margin(model, tokens, -step * direction)) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(1).double(), change, rtol=2e-2, atol=2e-3)


def test_a_model_without_letter_tokens_is_refused(model):
    rows = torch.zeros(1, 16)
    with pytest.raises(ValueError, match="no single tokens"):
        in_prompts(model, Examples(rows, rows, torch.tensor([5]), ["▁word"]), BOS)
