"""Every family of models, tiny and random."""

import operator

import torch
import transformers

from harvest.model.families import Family
from tests.making import BOS, EOS, PAD

N_LAYERS = 3
SPECIAL = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
LLAMA = dict(
    vocab_size=98,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    **SPECIAL,
)
HEADS = LLAMA | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GPT2 = dict(vocab_size=98, n_embd=16, n_layer=N_LAYERS, n_head=2, n_positions=64, **SPECIAL)
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
TINY = {
    "LlamaForCausalLM": ("LlamaConfig", LLAMA),
    "MistralForCausalLM": ("MistralConfig", LLAMA | {"sliding_window": 16}),
    "Qwen2ForCausalLM": ("Qwen2Config", LLAMA),
    "Qwen3ForCausalLM": ("Qwen3Config", HEADS),
    "GemmaForCausalLM": ("GemmaConfig", HEADS),
    "Gemma2ForCausalLM": ("Gemma2Config", HEADS | {"sliding_window": 16, "attn_logit_softcapping": 2.0}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", HEADS | {"sliding_window": 16}),
    "Gemma3ForConditionalGeneration": (
        "Gemma3Config",
        {
            "text_config": HEADS | {"sliding_window": 16},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 97,
            "boi_token_index": 96,
            "eoi_token_index": 95,
        },
    ),
    "Phi3ForCausalLM": ("Phi3Config", LLAMA | {"sliding_window": 16}),
    "OlmoForCausalLM": ("OlmoConfig", LLAMA),
    "Olmo2ForCausalLM": ("Olmo2Config", LLAMA),
    "StableLmForCausalLM": ("StableLmConfig", LLAMA),
    "SmolLM3ForCausalLM": ("SmolLM3Config", LLAMA),
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
    "GPTNeoForCausalLM": (
        "GPTNeoConfig",
        {key: value for key, value in NEOX.items() if not key.startswith("num_")}
        | {
            "num_layers": N_LAYERS,
            "num_heads": 2,
            "window_size": 8,
            "attention_types": [[["global", "local", "global"], 1]],
        },
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", NEOX | {"use_parallel_residual": False}),
    "BloomForCausalLM": ("BloomConfig", dict(vocab_size=98, hidden_size=16, n_layer=N_LAYERS, n_head=2, **SPECIAL)),
    "MixtralForCausalLM": ("MixtralConfig", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", LLAMA | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", HEADS | EXPERTS),
    "OlmoeForCausalLM": ("OlmoeConfig", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}),
}
TINY_PARALLEL = {
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", NEOX | {"use_parallel_residual": True}),
    "PhiForCausalLM": ("PhiConfig", LLAMA),
    "GPTJForCausalLM": ("GPTJConfig", GPT2 | {"rotary_dim": 4}),
    "FalconForCausalLM": (
        "FalconConfig",
        dict(vocab_size=98, hidden_size=16, num_hidden_layers=N_LAYERS, num_attention_heads=2, **SPECIAL),
    ),
}


def save_tiny(folder, architecture: str, config: tuple[str, dict], tokenizer) -> str:
    """A random model of the architecture, with gains that are neither 0 nor 1, in a folder."""
    torch.manual_seed(0)
    name, options = config
    model = getattr(transformers, architecture)(getattr(transformers, name)(**options))
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name or "ln_" in parameter_name:
            parameter.data.normal_(0, 0.3)
    model.config.architectures = [architecture]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain_sites(
    folder: str, architecture: str, family: Family, layer: int, tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What hooks on the modules that the table names see in plain transformers."""
    kind = getattr(transformers, architecture)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    block = operator.attrgetter(family.blocks)(model)[layer]
    seen: dict[str, torch.Tensor] = {}
    block.register_forward_pre_hook(
        lambda m, a, k: seen.update(resid_pre=a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    block.register_forward_hook(lambda m, a, out: seen.update(resid_post=out[0] if isinstance(out, tuple) else out))
    reader = getattr(block, family.resid_mid or family.parallel_norm)
    site = "resid_mid" if family.resid_mid else "norm_reads"
    reader.register_forward_pre_hook(lambda m, a: seen.update({site: a[0]}))
    reader.register_forward_hook(lambda m, a, out: seen.update(mlp_in=out))
    writer = operator.attrgetter(family.mlp_out)(block)
    writer.register_forward_hook(lambda m, a, out: seen.update(mlp_out=(out[0] if isinstance(out, tuple) else out).clone()))
    with torch.no_grad():
        model(tokens)
    return seen
