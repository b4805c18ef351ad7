"""What an intervention prints: each figure says which model it is of."""

import pytest

from evaluate.model.shown import table

PREDICTION = {
    "token": " the",
    "before": [2.5],
    "after": [0.0],
    "kl": 0.25,
    "ce_clean": 1.0,
    "ce_before": 1.5,
    "ce_after": 1.75,
    "rises": [{"token": " a", "change": 0.1}],
    "falls": [{"token": " b", "change": -0.2}],
}
RESULT = {
    "keep_error": False,
    "edits": [{"latent": 42, "kind": "ablate", "amount": 0.0}],
    "kl_mean": 0.25,
    "ce_clean": 1.0,
    "ce_before": 1.5,
    "ce_after": 1.75,
    "delta_ce": 0.25,
    "most_affected": [{"token": " b", "change": -0.2}],
    "continued": {"clean": " x", "before": " y", "after": " z"},
    "tokens": [PREDICTION, PREDICTION | {"ce_clean": None, "ce_before": None, "ce_after": None}],
}


def test_the_three_models_are_told_apart_by_hand():
    assert table(RESULT).splitlines() == [
        "three models read the text:",
        "  clean   the model as it is",
        "  before  with the transcoder: the transcoder's output takes the place of the MLP's",
        "  after   with the transcoder and the changes: latent 42 set to 0",
        "KL, delta CE (nats) and the probabilities that rise and fall most are of the prediction behind each token, after",
        "against before. active: the largest activation of the changed latents at the token, before the change.",
        "           token     active        KL  delta CE  probabilities",
        "          ' the'        2.5      0.25   +0.2500  ' a' +0.100  ' b' -0.200",
        "          ' the'        2.5      0.25            ' a' +0.100  ' b' -0.200",
        "cross-entropy (CE) of the text, nats a token; the lower, the better it is predicted:",
        "  1.0000  clean: the model as it is",
        "  1.5000  before: with the transcoder (+0.5000 to the line above)",
        "  1.7500  after: with the transcoder and the changes (+0.2500 to the line above)",
        "mean KL from before to after: 0.25 nats; most affected: ' b' -0.200",
        "goes on, the model as it is: ' x'",
        "goes on, with the transcoder: ' y'",
        "goes on, with the transcoder and the changes: ' z'",
    ]


def test_changes_are_in_words():
    pinned = {"latent": 7, "kind": "pin", "amount": 4.5}
    scaled = {"latent": 8, "kind": "scale", "amount": 3.0}
    line = table(RESULT | {"edits": [pinned, scaled]}).splitlines()[3]
    assert line == "  after   with the transcoder and the changes: latent 7 held at 4.5, latent 8 times 3"


@pytest.mark.parametrize("keep_error", [False, True])
def test_with_its_error_the_transcoder_is_said_to_be_the_model_again(keep_error):
    text = table(RESULT | {"keep_error": keep_error, "most_affected": []})
    assert ("its error is added back" in text) == ("which is the model again" in text) == keep_error
    assert "most affected: none: the predictions stay as they are" in text


@pytest.mark.parametrize(("second", "said"), [(0.0, True), (0.5, False)])
def test_latents_that_are_silent_on_the_text_are_said_to_be(second, said):
    tokens = [PREDICTION | {"before": [0.0]}, PREDICTION | {"before": [second]}]
    assert ("the changed latents are silent on this text" in table(RESULT | {"tokens": tokens})) == said
