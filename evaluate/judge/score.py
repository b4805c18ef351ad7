"""`python -m evaluate judge-score`: marks a judge's answers, beside the scores of constant answers."""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluate.intervals import estimate, ratio, resample
from evaluate.judge.config import JudgeScoreConfig
from store.disk.files import write_text
from store.errors import Damaged, Refused
from store.layout import ITEMS, JUDGE, SCORES, SUMMARY

CONSTANTS = {"always yes": True, "always no": False}
"""Judges that give the same answer to every question."""


def score_answers(config: JudgeScoreConfig) -> Path:
    """Writes scores.json and summary.txt beside the answers, and returns their folder. Refused for answers to other
    questions."""
    items = read_lines(config.run / JUDGE / ITEMS)
    write_scores(config.answers.parent, items, read_answers(config.answers, items))
    return config.answers.parent


def read_lines(path: Path, needed: Mapping[str, type] = {}) -> list[dict]:
    """The records of a JSONL file. Refused when there is no file.

    Damaged when a line is no JSON object or lacks one of the `needed` keys; the message names the first such line.
    """
    if not path.exists():
        raise Refused(f"{path} does not exist; judge-export writes the questions, a judge the rest")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):  # of text they would end at U+2028 and U+0085 too
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise Damaged(f"{path}, line {number} is no JSON object: {line[:60]!r}; restore or remove it")
        for name, kind in needed.items():
            if name not in record or not isinstance(record[name], kind):
                fault = f"{record[name]!r} as {name!r}" if name in record else f"no {name!r}"
                raise Damaged(f"{path}, line {number} has {fault}; every line needs {', '.join(needed)}")
        records.append(record)
    return records


def read_answers(path: Path, items: Sequence[dict]) -> dict[str, bool]:
    """Answers by id. Refused for an id that no item has.

    Damaged for an answer that is not true or false, and for an id with both.
    """
    known = {item["id"] for item in items}
    answers: dict[str, bool] = {}
    for record in read_lines(path, {"id": str, "answer": object}):
        name = record["id"]
        answer = record["answer"]
        if name not in known:
            raise Refused(f"{path} answers {name!r}, which is not asked; the questions were exported anew since")
        if answer not in (True, False):
            raise Damaged(f"{path}: the answer to {name!r} is {answer!r}; write true or false")
        if answers.setdefault(name, bool(answer)) != answer:
            raise Damaged(f"{path} answers {name!r} with both yes and no; keep one of them")
    return answers


def write_scores(folder: Path, items: Sequence[dict], answers: dict[str, bool]) -> None:
    """Writes scores.json and summary.txt."""
    by_task = scores(items, answers)
    write_text(folder / SCORES, json.dumps(by_task, indent=1) + "\n")
    write_text(folder / SUMMARY, summary(by_task))


def scores(items: Sequence[dict], answers: dict[str, bool]) -> dict:
    """By task: means with intervals over latents, the means of constant answers, right answers by kind of text and by
    quantile, and the figures of each latent."""
    by_task = {}
    for task in dict.fromkeys(item["task"] for item in items):
        asked = [item for item in items if item["task"] == task]
        mine = [item for item in asked if item["id"] in answers]
        answered = [answers[item["id"]] for item in mine]
        by_latent = per_latent(mine, answered)
        constant = {name: overall(per_latent(mine, [yes] * len(mine))) for name, yes in CONSTANTS.items()}
        by_task[task] = {
            "asked": len(asked),
            "answered": len(mine),
            **overall(by_latent),
            "constant": constant,
            "right_by_kind": by_group(mine, answered, lambda item: item["kind"]),
            "right_by_quantile": by_group(mine, answered, lambda item: item["quantile"]),
            "latents": [vars(latent) for latent in by_latent],
        }
    return by_task


@dataclass(frozen=True, kw_only=True)
class LatentScore:
    """A latent's figures on one task, keys of scores.json."""

    latent: int
    answered: int
    balanced_accuracy: float | None
    """(true positive rate + true negative rate) / 2; None unless both kinds of text were answered."""
    accuracy: float
    """Share of right answers."""
    constant_accuracy: float
    """Accuracy of the better constant answer."""
    true_positive_rate: float | None
    """Share of right answers where the latent is active; None without such texts."""
    true_negative_rate: float | None


def per_latent(items: Sequence[dict], answers: Sequence[bool]) -> list[LatentScore]:
    """Each latent's figures, from answers in the order of the items."""
    right_in_positives: dict[int, list[bool]] = {}
    right_in_negatives: dict[int, list[bool]] = {}
    for item, answer in zip(items, answers, strict=True):
        positives = right_in_positives.setdefault(item["latent"], [])
        negatives = right_in_negatives.setdefault(item["latent"], [])
        (positives if item["truth"] else negatives).append(answer == item["truth"])
    return [latent_score(latent, right_in_positives[latent], right_in_negatives[latent]) for latent in right_in_positives]


def latent_score(latent: int, positives: Sequence[bool], negatives: Sequence[bool]) -> LatentScore:
    """A latent's figures, from whether each answer about a positive and about a negative was right."""
    answered = len(positives) + len(negatives)
    true_positive_rate = sum(positives) / len(positives) if positives else None
    true_negative_rate = sum(negatives) / len(negatives) if negatives else None
    balanced_accuracy = None
    if true_positive_rate is not None and true_negative_rate is not None:
        balanced_accuracy = (true_positive_rate + true_negative_rate) / 2
    return LatentScore(
        latent=latent,
        answered=answered,
        balanced_accuracy=balanced_accuracy,
        accuracy=(sum(positives) + sum(negatives)) / answered,
        constant_accuracy=max(len(positives), len(negatives)) / answered,
        true_positive_rate=true_positive_rate,
        true_negative_rate=true_negative_rate,
    )


def overall(latents: Sequence[LatentScore]) -> dict:
    """Means over the latents that have a balanced accuracy, each {value, ci95}; latents are resampled for the interval."""
    scored = [latent for latent in latents if latent.balanced_accuracy is not None]
    names = ("balanced_accuracy", "accuracy", "true_positive_rate", "true_negative_rate")
    if not scored:
        return dict.fromkeys(names) | {"latents_scored": 0}
    figures = [operator.attrgetter(*names)(latent) for latent in scored]
    sums = torch.tensor([(*row, 1.0) for row in figures], dtype=torch.float64)
    drawn = resample(sums)
    means = {name: estimate(ratio(column, -1), sums, drawn).as_json() for column, name in enumerate(names)}
    return means | {"latents_scored": len(scored)}


def by_group(items: Sequence[dict], answers: Sequence[bool], group: Callable[[dict], object]) -> dict:
    """By group of questions, `right`, the share of right answers, and `n`, their number."""
    right: dict[object, list[bool]] = {}
    for item, answer in zip(items, answers, strict=True):
        if group(item) is not None:
            right.setdefault(group(item), []).append(answer == item["truth"])
    return {str(name): {"right": sum(each) / len(each), "n": len(each)} for name, each in sorted(right.items(), key=str)}


def with_interval(figure: dict | None) -> str:
    if figure is None:
        return "not measured"
    interval = figure["ci95"]
    return f"{figure['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else " (no interval)")


def summary(by_task: dict) -> str:
    """The scores as text: a task at a time, each figure above that of the constant answers."""
    lines = []
    for task, score in by_task.items():
        by_kind = ", ".join(
            f"{kind} {group['right']:.0%} of {group['n']}" for kind, group in score["right_by_kind"].items()
        )
        lines += [
            f"{task}: {score['answered']} of {score['asked']} answered, {score['latents_scored']} latents",
            f"  balanced accuracy  {with_interval(score['balanced_accuracy'])}",
            *(f"  {name:18} {with_interval(each['balanced_accuracy'])}" for name, each in score["constant"].items()),
            f"  accuracy           {with_interval(score['accuracy'])}",
            *(f"  {name:18} {with_interval(each['accuracy'])}" for name, each in score["constant"].items()),
            f"  right, by kind of text: {by_kind}",
        ]
    return "\n".join(lines) + "\n"
