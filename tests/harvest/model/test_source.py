"""Where a model's weights come from: folders, adapters that are merged, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harvest.model.loading import load_model
from harvest.model.source import base_of, source_of
from store.errors import Damaged, Refused

CPU = torch.device("cpu")
DOWN = "model.layers.1.mlp.down_proj.weight"


def write_adapter(folder: Path, base: Path, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A LoRA adapter of layer 1's down_proj, written by hand: its two factors."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 6,
        "target_modules": ["down_proj"],
        "layers_to_transform": [1],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shape = load_file(base / "model.safetensors")[DOWN].shape
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
    stem = f"base_model.model.{DOWN.removesuffix('.weight')}"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    return down, up


def test_an_adapter_is_merged_into_its_base(tiny_models, tmp_path):
    pytest.importorskip("peft")
    base = tiny_models["gemma2"]
    down, up = write_adapter(tmp_path / "adapter", base)
    by_hand = tmp_path / "by_hand"
    shutil.copytree(base, by_hand)
    weights = load_file(base / "model.safetensors")
    weights[DOWN] = weights[DOWN] + 6 / 2 * up @ down  # alpha / rank
    save_file(weights, by_hand / "model.safetensors", {"format": "pt"})
    tokens = torch.randint(3, 98, (2, 12), generator=torch.Generator().manual_seed(0))
    model = load_model(str(tmp_path / "adapter"), 1, CPU, torch.float32)
    expected = load_model(str(by_hand), 1, CPU, torch.float32).run(tokens)
    for site, values in model.run(tokens).items():
        torch.testing.assert_close(values, expected[site], rtol=1e-5, atol=1e-5)
    plain = load_model(str(base), 1, CPU, torch.float32)
    assert not torch.allclose(plain.run(tokens)["mlp_out"], expected["mlp_out"], atol=1e-2)
    assert model.revision.startswith(f"{plain.revision}+xxh3:")
    assert model.tokenizer_hash == plain.tokenizer_hash
    assert base_of(str(tmp_path / "adapter")) == str(base)


def test_an_adapter_without_a_base_is_damaged(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    with pytest.raises(Damaged, match="names no base_model_name_or_path"):
        source_of(str(tmp_path))


def test_an_adapter_of_another_width_is_refused(tiny_models, tmp_path):
    pytest.importorskip("peft")
    write_adapter(tmp_path / "adapter", tiny_models["gemma2"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor[:, :-1].contiguous() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(Refused, match="does not fit its base model"):
        load_model(str(tmp_path / "adapter"), 1, CPU, torch.float32)


def test_quantised_weights_are_refused(tiny_models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["gemma2"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"holds weights quantised by bitsandbytes.*harvest the original"):
        load_model(str(folder), 1, CPU, torch.float32)


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "with space"])
def test_a_name_that_is_no_folder_and_no_repository_is_refused(name):
    with pytest.raises(Refused, match=r"model '.*' is no folder here and no name on the hub"):
        load_model(name, 0, CPU, torch.float32)


def test_a_class_that_config_json_does_not_name_is_given(tiny_models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["gemma2"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["OurOwnForCausalLM"]}))
    tokens = torch.randint(3, 98, (2, 12), generator=torch.Generator().manual_seed(0))
    found = load_model(str(folder), 1, CPU, torch.float32, model_class="Gemma2ForCausalLM").run(tokens)
    expected = load_model(str(tiny_models["gemma2"]), 1, CPU, torch.float32).run(tokens)
    assert all(torch.equal(found[site], values) for site, values in expected.items())
    with pytest.raises(Refused, match=r"has no class 'OurOwnForCausalLM'; choose another --model-class"):
        load_model(str(folder), 1, CPU, torch.float32, model_class="OurOwnForCausalLM")


def test_a_file_and_an_address_of_the_hub_are_no_model_and_the_cure_is_named(tiny_models):
    file = tiny_models["gemma2"] / "config.json"
    with pytest.raises(Refused, match=f"no name on the hub; give the folder, {file.parent}"):
        source_of(str(file))
    with pytest.raises(Refused, match="no name on the hub; give google/gemma-2-2b, its name on the hub"):
        source_of("https://huggingface.co/google/gemma-2-2b/tree/main")
