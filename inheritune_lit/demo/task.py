"""A multiple-choice task made from held-out text: which passage comes next?"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

TASK = "demo_next_passage"
_CONTEXT_CHARACTERS = 200
_CHOICE_CHARACTERS = 80
_CHOICES = 4


def write_task(folder: Path, documents: Sequence[str], seed: int = 1337, per_document: int = 12) -> Path:
    """Write the rows and the lm-eval description of the task.

    Each row shows a stretch of one document and four stretches of the same length: the one that follows, and three from
    other places of the held-out documents. Chance is 25%.

    Args:
        folder: an existing folder to fill.
        documents: held-out texts, at least four.
        seed: seed of the places and of the order of the choices.
        per_document: most rows a document gives.

    Returns:
        The task's YAML file, for ``inheritune eval --tasks``.
    """
    draw = random.Random(seed)
    span = _CONTEXT_CHARACTERS + _CHOICE_CHARACTERS
    passages = []
    for text in documents:
        for _ in range(min(per_document, len(text) // (2 * span))):
            start = draw.randrange(len(text) - span)
            passages.append(
                (text[start : start + _CONTEXT_CHARACTERS], text[start + _CONTEXT_CHARACTERS : start + span])
            )
    rows = []
    for number, (context, following) in enumerate(passages):
        others = [passage[1] for other, passage in enumerate(passages) if other != number and passage[1] != following]
        choices = [following, *draw.sample(others, _CHOICES - 1)]
        draw.shuffle(choices)
        rows.append({"context": context, "choices": choices, "gold": choices.index(following)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = folder / f"{TASK}.yaml"
    task.write_text(_YAML.format(task=TASK), encoding="utf-8")
    return task


_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_target: gold
doc_to_choice: choices
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""
