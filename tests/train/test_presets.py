import dataclasses

import pytest

from store.cli import parse
from train.advice import warnings_of
from train.config import TrainConfig
from train.plan.config import PlanConfig
from train.plan.layouts import layout_of
from train.presets import FOLDER, expand, names, with_defaults


def config_of(*arguments: str) -> TrainConfig:
    return parse(TrainConfig, "train", expand(arguments))


def test_the_defaults_are_the_layer_8_recipe():
    assert config_of("--preset", "gemma-2-2b-layer8") == dataclasses.replace(
        TrainConfig(), prefix_sizes="2304,4608,9216,13824,18432", warmup_steps=1024, lr=4e-4
    )
    preset = config_of("--preset=gemma-2-2b-layer8")
    assert (preset.prefixes, preset.peak_lr) == (TrainConfig().prefixes, TrainConfig().peak_lr)


@pytest.mark.parametrize("name", names())
def test_every_preset_is_a_valid_recipe(name):
    config = config_of("--preset", name)
    assert config.prefixes[-1] == config.d_sae
    assert len(config.prefixes) >= 4


def test_the_preset_for_16_gb_states_the_memory_that_its_shapes_need():
    """Those of training by the plan's formula, whose terms tests/train/step/test_memory.py counts."""
    config = config_of("--preset", "gemma-2-2b-layer8-t4")
    text = (FOLDER / "gemma-2-2b-layer8-t4.toml").read_text()
    d = 2304
    training = layout_of(PlanConfig(tokens=config.tokens, batch_rows=config.batch_rows)).need.on_device()
    assert training > 16 * (2 * d * config.d_sae + config.d_sae + d)
    assert f"Training: {training / 1e9:.1f} GB" in text
    assert f"{config.tokens * 4 * d / 1e9:.0f} GB of disk): {config.n_steps:,} steps" in text
    model = 256_000 * d + 26 * (2 * d * 2048 + 2 * d * 1024 + 3 * d * 9216 + 4 * d) + d
    assert f"{model / 1e9:.2f}B parameters x 4 bytes = {4 * model / 1e9:.1f} GB" in text
    assert max(4 * model, training) < 15e9
    assert warnings_of(config) == []


@pytest.mark.parametrize("order", [("--k", "50", "--preset", "demo"), ("--preset", "demo", "--k", "50")])
def test_options_beside_a_preset_win_wherever_they_stand(order):
    config = config_of(*order)
    assert (config.k, config.d_sae) == (50, 8192)


def test_a_file_of_ones_own_is_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("d_sae = 64\nk = 4\nprefix_sizes = [16, 48]\nskip = true\ncheck = false\n")
    config = config_of("--preset", str(path))
    assert (config.prefixes, config.skip, config.check) == ((16, 64), True, False)


def test_unknown_presets_and_fields_are_refused_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"no preset 'gemma-2-2b'; there are demo, demo-all, gemma-2-2b-layer12,"):
        config_of("--preset", "gemma-2-2b")
    path = tmp_path / "mine.toml"
    path.write_text("dsae = 64\n")
    with pytest.raises(ValueError, match=r"sets 'dsae', which is no option of train; did you mean d_sae\?"):
        config_of("--preset", str(path))


def test_a_store_gives_its_model_and_layer_where_the_options_do_not(tmp_path):
    (tmp_path / "manifest.json").write_text('{"recipe": {"model": "openai-community/gpt2", "layer": 5}}')

    def named(*words: str) -> tuple[str, int]:
        config = parse(TrainConfig, "train", with_defaults(words))
        return config.model, config.layer

    assert named("--store", str(tmp_path)) == ("openai-community/gpt2", 5)
    assert named(f"--store={tmp_path}", "--layer", "7") == ("openai-community/gpt2", 7)
    assert named("--model=m", "--store", str(tmp_path)) == ("m", 5)
    assert named() == named("--store", str(tmp_path / "none")) == ("google/gemma-2-2b", 8)
    (tmp_path / "manifest.json").write_text("[]")
    assert named("--store", str(tmp_path)) == ("google/gemma-2-2b", 8)
