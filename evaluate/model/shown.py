"""The result of an intervention as people read it."""

from collections.abc import Sequence

from evaluate.model.control import control_lines
from evaluate.model.edits import edit_text


def table(result: dict) -> str:
    """What is compared, a line for each token, and the means over the text."""
    change = ", ".join(map(edit_text, result["edits"]))
    lines = [*_compared(result["keep_error"], result["edits"]), *map(_token_line, result["tokens"]), *_means(result)]
    ways = _ways(result["keep_error"])
    lines += [f"goes on, {ways[name]}: {text!r}" for name, text in result["continued"].items()]
    if "control" in result:
        lines += control_lines(result, [change, ", ".join(map(edit_text, result["control"]["edits"]))])
    return "\n".join(lines)


def _ways(keep_error: bool) -> dict[str, str]:
    """What each of the three models is, in words."""
    transcoder = "with the transcoder and its error, which is the model again" if keep_error else "with the transcoder"
    return {"clean": "the model as it is", "before": transcoder, "after": "with the transcoder and the changes"}


def _in_words(edit: dict) -> str:
    words = {"ablate": "set to 0", "scale": f"times {edit['amount']:g}", "pin": f"held at {edit['amount']:g}"}
    return f"latent {edit['latent']} {words[edit['kind']]}"


def _compared(keep_error: bool, edits: Sequence[dict]) -> list[str]:
    ways = _ways(keep_error)
    place = "the transcoder's output takes the place of the MLP's" + ", and its error is added back" * keep_error
    return [
        "three models read the text:",
        f"  clean   {ways['clean']}",
        f"  before  {ways['before']}: {place}",
        f"  after   {ways['after']}: {', '.join(map(_in_words, edits))}",
        "KL, delta CE (nats) and the probabilities that rise and fall most are of the prediction behind each token, after",
        "against before. active: the largest activation of the changed latents at the token, before the change.",
        f"{'token':>16} {'active':>10} {'KL':>9} {'delta CE':>9}  probabilities",
    ]


def _token_line(prediction: dict) -> str:
    delta = ""
    if prediction["ce_after"] is not None:
        delta = f"{prediction['ce_after'] - prediction['ce_before']:+.4f}"
    active = max(prediction["before"])
    figures = f"{prediction['token'][-14:]!r:>16} {active:10.3g} {prediction['kl']:9.2g} {delta:>9}"
    return f"{figures}  {_words(prediction['rises'])}  {_words(prediction['falls'])}"


def _means(result: dict) -> list[str]:
    """The cross-entropy of the three models, one below the other, and what the change does in all."""
    ways = _ways(result["keep_error"])
    costs = {"before": result["ce_before"] - result["ce_clean"], "after": result["delta_ce"]}
    lines = ["cross-entropy (CE) of the text, nats a token; the lower, the better it is predicted:"]
    for name, way in ways.items():
        beyond = f" ({costs[name]:+.4f} to the line above)" if name in costs else ""
        lines.append(f"  {result[f'ce_{name}']:.4f}  {name}: {way}{beyond}")
    if all(max(prediction["before"]) == 0 for prediction in result["tokens"]):
        lines.append("the changed latents are silent on this text; the browser, and latents_of, show which ones fire on it")
    affected = _words(result["most_affected"]) or "none: the predictions stay as they are"
    return [*lines, f"mean KL from before to after: {result['kl_mean']:.4g} nats; most affected: {affected}"]


def _words(items: Sequence[dict]) -> str:
    return "  ".join(f"{item['token']!r} {item['change']:+.3f}" for item in items[:3])
