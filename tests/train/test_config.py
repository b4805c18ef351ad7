import pytest

from store.counts import parse_prefix_sizes
from train.config import TrainConfig

GROUPS = "[1152, 2073, 3732, 6718, 4757]"
PREFIXES = "2304, 4608, 9216, 13824, 18432"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (GROUPS, (1152, 3225, 6957, 13675, 18432)),
        (GROUPS.strip("[]"), (1152, 3225, 6957, 13675, 18432)),
        (PREFIXES, (2304, 4608, 9216, 13824, 18432)),
        (f"[{PREFIXES}]", (2304, 4608, 9216, 13824, 18432)),
        ("18432", (18432,)),
        ("6144,6144,6144", (6144, 12288, 18432)),
    ],
)
def test_group_and_prefix_lists_are_both_understood(text, sizes):
    assert parse_prefix_sizes(text, 18432) == sizes


@pytest.mark.parametrize("text", ["", "a,b", "[1,", "1.5,18432", "-1,18433", "[]", "{}", "true", "[[18432]]"])
def test_what_is_no_list_of_sizes_is_refused(text):
    with pytest.raises(ValueError, match="is not a list of positive whole numbers"):
        parse_prefix_sizes(text, 18432)


@pytest.mark.parametrize("text", ["2304,9216", "4608,2304,18432", "18433"])
def test_lists_that_do_not_end_at_d_sae_are_refused(text):
    with pytest.raises(ValueError, match="but d_sae is 18432"):
        TrainConfig(prefix_sizes=text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 20_000}, "k is 20000, but the dictionary has only 18432"),
        ({"k": 0}, "k is 0"),
        ({"tokens": 10}, "do not fill one batch"),
        ({"min_lr": 2.0}, "min_lr is 2.0"),
        ({"k_start": 0.5}, "k_start is 0.5"),
        ({"k": 96, "k_start": 200.0}, "19200 latents a row, but the dictionary has only 18432; give at most 192"),
        ({"prefix_weights": "1,1"}, "must be 5 numbers, one for each of the prefixes 2304, 4608"),
        ({"prefix_weights": "1,1,1,1,-1"}, "not negative and not all 0"),
        ({"prefix_weights": "0,0,0,0,0"}, "not negative and not all 0"),
        ({"prefix_weights": "1,1,1,1,nan"}, "not negative and not all 0"),
        ({"prefix_weights": "1,1,1", "random_prefixes": 3}, "belong to listed prefixes"),
        ({"detach_prefixes": True, "prefix_sizes": "none"}, "detach_prefixes needs a nested dictionary"),
        ({"l0_warmup": 1.5}, "l0_warmup is 1.5"),
        ({"random_prefixes": 1}, "give 2 to d_sae"),
        ({"random_prefixes": 3, "prefix_sizes": "none"}, "random_prefixes needs a nested dictionary"),
        ({"source_site": "mlp_out", "skip": True}, "a skip connection would copy it"),
        ({"source_site": "mlp_out", "view": "rms"}, "give --view raw"),
        ({"target_site": "resid_mid", "view": "rms"}, "an autoencoder reads what it predicts"),
        ({"warmup_steps": -1}, "must not be negative"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_defaults_are_the_layer_8_recipe():
    config = TrainConfig()
    assert config.prefixes == (2304, 4608, 9216, 13824, 18432)
    assert (config.k, config.batch_rows, config.peak_lr, config.n_warmup_steps) == (96, 1024, 4e-4, 1024)
    assert config.n_steps == 16_000
    assert str(config.store_directory) == "data/gemma-2-2b/layer8"
    assert str(config.run_directory) == "results/gemma-2-2b/layer8/matryoshka_batchtopk"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "matryoshka_batchtopk"),
        ({"activation": "jumprelu", "prefix_sizes": "none"}, "jumprelu"),
        ({"activation": "gated", "skip": True}, "matryoshka_gated_skip"),
        ({"target_site": "resid_mid", "prefix_sizes": "18432"}, "batchtopk_sae"),
    ],
)
def test_runs_are_named_after_what_they_are(changes, name):
    assert TrainConfig(**changes).run_directory.name == name


def test_autoencoders_read_raw_rows_and_transcoders_the_rms_view():
    assert TrainConfig().input_view == "rms"
    assert TrainConfig(target_site="resid_mid").input_view == "raw"
    assert TrainConfig(source_site="mlp_out").input_view == "raw"


def test_k_falls_linearly_to_k_over_four_fifths_of_the_steps():
    config = TrainConfig(tokens=1024 * 100, k=10, k_start=3.0)
    assert [config.k * config.k_factor(step) for step in (0, 20, 40, 79, 80, 99)] == pytest.approx(
        [30, 25, 20, 10.25, 10, 10]
    )
    assert {TrainConfig(tokens=1024 * 100, k=10).k_factor(step) for step in range(100)} == {1}
