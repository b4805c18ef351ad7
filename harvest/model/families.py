"""Model families: where `resid_mid` and `mlp_out` lie in each, and the norm before the MLP, recognised by what it computes.

A model need not be listed: whatever TransformerLens's bridge loads runs, if its block adds attention and MLP one after the
other. The table says what the tests have checked, module by module, against plain transformers; README.md shows it.
"""

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from store.views import NORMS, Norm, NormKind, normed


@dataclass(frozen=True, kw_only=True)
class MlpNames:
    """Modules of an MLP in transformers."""

    up: str
    down: str
    activation: str
    gate: str | None = None
    """None where there is no gate, or where `up` holds it too."""
    fused: bool = False
    """Whether `up` holds the gate's rows first, and its own after them."""


GATED = MlpNames(gate="gate_proj", up="up_proj", down="down_proj", activation="act_fn")
NEOX = MlpNames(up="dense_h_to_4h", down="dense_4h_to_h", activation="act")
GPT2 = MlpNames(up="c_fc", down="c_proj", activation="act")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the sites of a block lie in transformers; TransformerLens has hook_resid_mid and hook_mlp_out for them."""

    models: str
    """Models that people know, of this architecture."""
    blocks: str = "model.layers"
    """The list of blocks, from the model on."""
    resid_mid: str | None = "post_attention_layernorm"
    """Module of the block whose input is resid_mid; None where attention and MLP run side by side."""
    mlp_out: str = "mlp"
    """Module of the block whose output is mlp_out."""
    norm: NormKind = "rms"
    """What the norm before the MLP computes; `none` where the MLP reads resid_mid itself."""
    parallel_norm: str = "input_layernorm"
    """Where attention and MLP run side by side: the norm of the block's input that the MLP reads."""
    mlp: MlpNames | None = GATED
    """The parts of the MLP; None for a mixture of experts."""

    @property
    def post_norm(self) -> str | None:
        """The norm between the MLP and the residual stream; None where there is none."""
        return None if self.mlp_out.startswith("mlp") else self.mlp_out

    @property
    def views(self) -> str:
        """The views that a transcoder may read."""
        return "raw" if NORMS[self.norm].normalise is None else "raw, rms, normed"


FAMILIES = {
    "LlamaForCausalLM": Family(models="Llama 2 and 3, SmolLM 1 and 2"),
    "MistralForCausalLM": Family(models="Mistral"),
    "Qwen2ForCausalLM": Family(models="Qwen 2, 2.5"),
    "Qwen3ForCausalLM": Family(models="Qwen 3"),
    "GemmaForCausalLM": Family(models="Gemma 1"),
    "Gemma2ForCausalLM": Family(
        models="Gemma 2", resid_mid="pre_feedforward_layernorm", mlp_out="post_feedforward_layernorm"
    ),
    "Gemma3ForCausalLM": Family(
        models="Gemma 3, text", resid_mid="pre_feedforward_layernorm", mlp_out="post_feedforward_layernorm"
    ),
    "Gemma3ForConditionalGeneration": Family(
        models="Gemma 3, multimodal (its text part)",
        blocks="model.language_model.layers",
        resid_mid="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
    ),
    "Phi3ForCausalLM": Family(
        models="Phi-3, Phi-4",
        mlp=MlpNames(up="gate_up_proj", down="down_proj", activation="activation_fn", fused=True),
    ),
    "OlmoForCausalLM": Family(models="OLMo 1", norm="layernorm"),
    "Olmo2ForCausalLM": Family(models="OLMo 2", resid_mid="mlp", mlp_out="post_feedforward_layernorm", norm="none"),
    "StableLmForCausalLM": Family(models="StableLM", norm="layernorm"),
    "SmolLM3ForCausalLM": Family(models="SmolLM 3"),
    "GPT2LMHeadModel": Family(models="GPT-2", blocks="transformer.h", resid_mid="ln_2", norm="layernorm", mlp=GPT2),
    "GPTNeoForCausalLM": Family(models="GPT-Neo", blocks="transformer.h", resid_mid="ln_2", norm="layernorm", mlp=GPT2),
    "GPTNeoXForCausalLM": Family(
        models="GPT-NeoX, sequential (RedPajama, StableLM-alpha)", blocks="gpt_neox.layers", norm="layernorm", mlp=NEOX
    ),
    "BloomForCausalLM": Family(
        models="BLOOM",
        blocks="transformer.h",
        mlp_out="mlp.dense_4h_to_h",
        norm="layernorm",
        mlp=MlpNames(up="dense_h_to_4h", down="dense_4h_to_h", activation="gelu_impl"),
    ),
    "MixtralForCausalLM": Family(models="Mixtral (the whole block of experts)", mlp=None),
    "Qwen2MoeForCausalLM": Family(models="Qwen 2 MoE (the whole block of experts)", mlp=None),
    "Qwen3MoeForCausalLM": Family(models="Qwen 3 MoE (the whole block of experts)", mlp=None),
    "OlmoeForCausalLM": Family(models="OLMoE (the whole block of experts)", mlp=None),
}
"""Families whose block adds attention first and the MLP after it, by their class in transformers."""

PARALLEL = {
    "GPTNeoXForCausalLM": Family(
        models="Pythia, GPT-NeoX-20B",
        blocks="gpt_neox.layers",
        resid_mid=None,
        norm="layernorm",
        parallel_norm="post_attention_layernorm",
        mlp=NEOX,
    ),
    "PhiForCausalLM": Family(
        models="Phi-1, 1.5, 2",
        resid_mid=None,
        mlp_out="mlp",
        norm="layernorm",
        mlp=MlpNames(up="fc1", down="fc2", activation="activation_fn"),
    ),
    "GPTJForCausalLM": Family(
        models="GPT-J",
        blocks="transformer.h",
        resid_mid=None,
        norm="layernorm",
        parallel_norm="ln_1",
        mlp=MlpNames(up="fc_in", down="fc_out", activation="act"),
    ),
    "FalconForCausalLM": Family(models="Falcon", blocks="transformer.h", resid_mid=None, norm="layernorm", mlp=NEOX),
}
"""Families whose attention and MLP both read the block's input. They have no resid_mid: `--sites resid_pre,mlp_out`."""


def families_table() -> str:
    """The table of families, for README.md."""
    lines = [
        "| models | class in transformers | norm before the MLP | `resid_mid`: input of | `mlp_out`: output of | views |",
        "|---|---|---|---|---|---|",
    ]
    for architecture, family in [*FAMILIES.items(), *PARALLEL.items()]:
        source = f"`{family.resid_mid}`" if family.resid_mid else "none: attention and MLP run side by side"
        cells = (family.models, f"`{architecture}`", NORMS[family.norm].label, source, f"`{family.mlp_out}`", family.views)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
"""Tried where the module of a norm does not say its own."""
PROBE_ROWS = 8
KNOWN: tuple[NormKind, ...] = tuple(kind for kind, formula in NORMS.items() if formula.normalise is not None)
"""Kinds of norm that can be recognised."""
UNKNOWN = "the norm before the MLP, a %s, is no {}: of the views only raw exists".format(
    " or ".join(NORMS[kind].label for kind in KNOWN)
)
log = logging.getLogger(__name__)


def recognise_norm(module: nn.Module, width: int) -> Norm:
    """The norm that a module computes: kind, eps, gain and bias, found by what it makes of small random rows.

    Its stored weight is taken as the gain, as 1 + weight, or left out, whichever reproduces the module to 1e-4. A module
    that computes none of NORMS gives the kind `none`, and a warning.

    Args:
        module: the norm before the MLP, as transformers has it.
        width: of its rows.
    """
    rows = torch.randn(PROBE_ROWS, width, generator=torch.Generator().manual_seed(0))
    rows *= torch.logspace(-4, 1, PROBE_ROWS)[:, None]  # in small rows eps shows
    measured = _in_float32(module, rows)
    for norm in _candidates(module, width):
        expected = normed(rows, norm)
        if torch.allclose(measured, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
            return norm
    log.warning(UNKNOWN, type(module).__name__)
    return no_norm(width)


def no_norm(width: int) -> Norm:
    """What a store keeps where only the view raw exists."""
    return Norm(kind="none", eps=0.0, gain=torch.ones(width))


@torch.no_grad()
def _in_float32(module: nn.Module, rows: Tensor) -> Tensor:
    """What a copy of the module in float32 makes of the rows."""
    copy = deepcopy(module).float()
    device = next((parameter.device for parameter in copy.parameters()), rows.device)
    return copy(rows.to(device)).float().cpu()


def _candidates(module: nn.Module, width: int) -> Iterator[Norm]:
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    gains = [torch.ones(width)]
    if weight is not None:
        weight = weight.detach().float().cpu()
        gains = [weight, 1 + weight]
    bias = None if bias is None else bias.detach().float().cpu()
    own = [getattr(module, name) for name in ("eps", "variance_epsilon", "epsilon") if hasattr(module, name)]
    epsilons = [float(eps) for eps in own] or EPSILONS
    for kind, gain, eps in product(KNOWN, gains, epsilons):
        yield Norm(kind=kind, eps=eps, gain=gain, bias=bias)
