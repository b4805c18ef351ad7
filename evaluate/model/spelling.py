"""First-letter spelling prompts: gradients for the effect of each latent on the model's answer (arXiv 2409.14507).

The prompt asks for the first letter of a word. The margin is the logit of the right letter less the mean of the other
letters. Ablating a latent at the word's token changes the margin by about its activation times (its decoder row . the
gradient of the margin with respect to the site that it predicts): the first-order term of the paper's integrated
gradients. The common beginning of all prompts is read once, because no later token changes it.
"""

from copy import deepcopy

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens.hook_points import HookPoint
from transformers import DynamicCache

from evaluate.metrics.tasks import LETTERS, Examples, Prompted
from harvest.config import SITES
from harvest.model.language_model import LanguageModel
from harvest.model.unembedding import Unembedding
from store.errors import Refused

BEFORE = " apple has the first letter: A\n music has the first letter: M\n"

AFTER = " has the first letter:"

MOST_WORDS = 256

AT_ONCE = 32


@torch.no_grad()
def read(model: LanguageModel, tokens: Int[Tensor, " context"]) -> DynamicCache:
    """The keys and values of a text in the model's attention, for all prompts that begin with it."""
    cache = DynamicCache(config=model.whole.config.get_text_config())
    model.whole.base_model(input_ids=tokens[None], past_key_values=cache, use_cache=True)
    return cache


def letter_gradients(
    model: LanguageModel,
    unembedding: Unembedding,
    before: DynamicCache,
    tokens: Int[Tensor, "words context"],
    letters: Int[Tensor, " letters"],
    right: Int[Tensor, " words"],
    sites: tuple[str, str] = ("resid_mid", "mlp_out"),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sites at the first token after `before`, the gradient of the margin there, and the letters' logits
    after the last token.

    model: its layer is where the transcoder reads.
    unembedding: the model's.
    before: the text that all prompts begin with, from `read`.
    tokens: the rest of each prompt, the word first.
    letters: token of each letter.
    right: index into the letters of the right answer.
    sites: what the transcoder reads, and what it predicts.
    """
    seen: dict[str, Tensor] = {}
    cache = deepcopy(before)
    cache.batch_repeat_interleave(len(tokens))

    def keep(value: Tensor, hook: HookPoint) -> None:
        seen["source"] = value.detach()

    def differentiate(value: Tensor, hook: HookPoint) -> Tensor:
        seen["target"] = value.detach().requires_grad_()
        return seen["target"]

    source_site, target_site = (SITES[site].format(layer=model.layer) for site in sites)
    hooks = [(source_site, keep), (target_site, differentiate)]
    with torch.enable_grad(), model.bridge.hooks(fwd_hooks=hooks):
        body = model.whole.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        hidden = body.last_hidden_state[:, -1]
        weight = unembedding.weight[letters]
        bias = None if unembedding.bias is None else unembedding.bias[letters]
        logits = unembedding.capped(torch.nn.functional.linear(hidden, weight, bias).float())
        chosen = logits.gather(1, right[:, None]).squeeze(1)
        margin = chosen - (logits.sum(1) - chosen) / (len(letters) - 1)
        [gradient] = torch.autograd.grad(margin.sum(), seen["target"])
    return seen["source"][:, 0], seen["target"][:, 0].detach(), gradient[:, 0], logits.detach()


def in_prompts(
    model: LanguageModel, test: Examples, bos: int, sites: tuple[str, str] = ("resid_mid", "mlp_out")
) -> Prompted:
    """The test words in the prompt, with their rows of both sites.

    Refused without a word, or when a letter is no single token.
    """
    words = test.of(test.letters() >= 0)
    words = words.of(torch.arange(len(words.text)) < MOST_WORDS)

    if not words.text:
        raise Refused("no held-out token to test on is a lower-case word; harvest more tokens")

    def ids(text: str) -> list[int]:
        return model.tokenizer.encode(text, add_special_tokens=False)

    capitals = [ids(f" {letter.upper()}") for letter in LETTERS]
    if any(len(each) != 1 for each in capitals):
        raise Refused(f"the letters are no single tokens of {model.name}; leave the probes out with --no-probes")
    letters = torch.tensor([each[0] for each in capitals])
    after = ids(AFTER)
    asked = torch.tensor([[token, *after] for token in words.token.tolist()])
    unembedding = Unembedding.of(model)
    device = unembedding.weight.device
    right = words.letters()
    batches = []
    before = read(model, torch.tensor([bos, *ids(BEFORE)], device=model.device))
    for part in tqdm(torch.arange(len(asked)).split(AT_ONCE), desc="spelling", unit="batch"):
        parts = letter_gradients(
            model, unembedding, before, asked[part].to(model.device), letters.to(device), right[part].to(device), sites
        )
        batches.append([each.float().cpu() for each in parts])
    source, target, gradient, logits = (torch.cat(column) for column in zip(*batches, strict=True))
    spelled = (logits.argmax(1) == right).float()
    return Prompted(Examples(source, target, words.token, words.text), gradient, spelled)
