"""A judge's answers marked against the truth: balanced accuracy by latent, beside what a constant answer would get."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from evaluate.intervals import estimate, ratio, resample
from evaluate.judge.config import JudgeScoreConfig
from store.disk.files import write_text
from store.errors import Damaged, Refused
from store.layout import ITEMS, JUDGE, SCORES, SUMMARY

CONSTANTS = {"always yes": True, "always no": False}


def score_answers(config: JudgeScoreConfig) -> Path:
    """The folder of the answers, with scores.json and summary.txt. Refused for answers that belong to no question."""
    items = read_lines(config.run / JUDGE / ITEMS)
    write_scores(config.answers.parent, items, read_answers(config.answers, items))
    return config.answers.parent


def read_lines(path: Path, needed: Mapping[str, type] = {}) -> list[dict]:
    """The records of a JSONL file. Damaged, naming the first line that is damaged or lacks something."""
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
                said = f"{record[name]!r} as {name!r}" if name in record else f"no {name!r}"
                raise Damaged(f"{path}, line {number} has {said}; every line needs {', '.join(needed)}")
        records.append(record)
    return records


def read_answers(path: Path, items: Sequence[dict]) -> dict[str, bool]:
    """Answers by id. Refused for an id that is not asked; Damaged for one answered twice differently, or no yes or no."""
    known, found = {item["id"] for item in items}, {}
    for record in read_lines(path, {"id": str, "answer": object}):
        name, said = record["id"], record["answer"]
        if name not in known:
            raise Refused(f"{path} answers {name!r}, which is not asked; the questions were exported anew since")
        if said not in (True, False):
            raise Damaged(f"{path}: the answer to {name!r} is {said!r}; write true or false")
        if found.setdefault(name, bool(said)) != said:
            raise Damaged(f"{path} answers {name!r} with both yes and no; keep one of them")
    return found


def write_scores(folder: Path, items: Sequence[dict], answers: dict[str, bool]) -> None:
    found = scores(items, answers)
    write_text(folder / SCORES, json.dumps(found, indent=1) + "\n")
    write_text(folder / SUMMARY, summary(found))


def scores(items: Sequence[dict], answers: dict[str, bool]) -> dict:
    """By task: overall with its interval over latents, each constant answer's, by kind of text, and by latent."""
    found = {}
    for task in dict.fromkeys(item["task"] for item in items):
        asked = [item for item in items if item["task"] == task]
        mine = [item for item in asked if item["id"] in answers]
        said = [answers[item["id"]] for item in mine]
        by_latent = per_latent(mine, said)
        constant = {name: overall(per_latent(mine, [yes] * len(mine))) for name, yes in CONSTANTS.items()}
        found[task] = {
            "asked": len(asked), "answered": len(mine), **overall(by_latent), "constant": constant,
            "right_by_kind": by_group(mine, said, lambda item: item["kind"]),
            "right_by_quantile": by_group(mine, said, lambda item: item["quantile"]), "latents": by_latent,
        }  # fmt: skip
    return found


def per_latent(items: Sequence[dict], said: Sequence[bool]) -> list[dict]:
    """Each latent's figures; balanced accuracy, (true positive rate + true negative rate) / 2, needs both kinds of text."""
    found = []
    for latent in dict.fromkeys(item["latent"] for item in items):
        pairs = [(item["truth"], yes) for item, yes in zip(items, said, strict=True) if item["latent"] == latent]
        yes, no = ([answer == truth for truth, answer in pairs if truth == wanted] for wanted in (True, False))
        rates = [sum(right) / len(right) if right else None for right in (yes, no)]
        balanced = None if None in rates else sum(rates) / 2  # type: ignore[arg-type]
        found.append({
            "latent": latent, "answered": len(pairs), "balanced_accuracy": balanced,
            "accuracy": (sum(yes) + sum(no)) / len(pairs), "constant_accuracy": max(len(yes), len(no)) / len(pairs),
            "true_positive_rate": rates[0], "true_negative_rate": rates[1],
        })  # fmt: skip
    return found


def overall(latents: Sequence[dict]) -> dict:
    """Means over latents that can be scored, each {value, ci95}: latents are what is drawn again for the interval."""
    scored = [latent for latent in latents if latent["balanced_accuracy"] is not None]
    names = ("balanced_accuracy", "accuracy", "true_positive_rate", "true_negative_rate")
    if not scored:
        return dict.fromkeys(names) | {"latents_scored": 0}
    sums = torch.tensor([[*(latent[name] for name in names), 1.0] for latent in scored], dtype=torch.float64)
    drawn = resample(sums)
    means = {name: estimate(ratio(column, -1), sums, drawn).as_json() for column, name in enumerate(names)}
    return means | {"latents_scored": len(scored)}


def by_group(items: Sequence[dict], said: Sequence[bool], group: Callable[[dict], object]) -> dict:
    """Share of right answers in each group of questions."""
    right: dict[object, list[bool]] = {}
    for item, yes in zip(items, said, strict=True):
        if group(item) is not None:
            right.setdefault(group(item), []).append(yes == item["truth"])
    return {str(name): {"right": sum(each) / len(each), "n": len(each)} for name, each in sorted(right.items(), key=str)}


def shown(figure: dict | None) -> str:
    if figure is None:
        return "not measured"
    interval = figure["ci95"]
    return f"{figure['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else " (no interval)")


def summary(found: dict) -> str:
    """The scores in words."""
    lines = []
    for task, score in found.items():
        lines += [
            f"{task}: {score['answered']} of {score['asked']} answered, {score['latents_scored']} latents",
            f"  balanced accuracy  {shown(score['balanced_accuracy'])}",
            *(f"  {name:18} {shown(each['balanced_accuracy'])}" for name, each in score["constant"].items()),
            f"  accuracy           {shown(score['accuracy'])}",
            *(f"  {name:18} {shown(each['accuracy'])}" for name, each in score["constant"].items()),
            "  right, by kind of text: " + ", ".join(f"{k} {v['right']:.0%} of {v['n']}" for k, v in
                                                     score["right_by_kind"].items()),
        ]  # fmt: skip
    return "\n".join(lines) + "\n"
