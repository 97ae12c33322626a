"""A tiny model with opinions, another one, and rows of tasks."""

import random
from pathlib import Path

import pytest
import torch
from tiny import make_checkpoint, write_jsonl

SUBJECTS = ("virology", "anatomy")
CHOICE = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{q}}"
doc_to_choice: c
doc_to_target: a
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
"""A task file with rows ``{"q", "c", "a"}`` beside it."""
WORDS = ["heat", "the", "cell", "virus", "opens", "water", "a", "door", "with"]


@pytest.fixture(scope="session")
def rows_dir(tmp_path_factory) -> Path:
    """Rows with the columns of PIQA, MMLU, WikiText, SuperGLUE wsc, SciQ, HellaSwag, WinoGrande and LAMBADA."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(3)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    piqa = [{"goal": words(8), "sol1": words(6), "sol2": words(4), "label": draw.randrange(2)} for _ in range(12)]
    write_jsonl(folder / "piqa/validation.jsonl", piqa)
    for split, count in (("dev", 5), ("test", 8)):
        mmlu = [
            {"question": words(5), "subject": s, "choices": [words(2) for _ in range(4)], "answer": draw.randrange(4)}
            for s in SUBJECTS
            for _ in range(count)
        ]
        write_jsonl(folder / f"mmlu/{split}.jsonl", mmlu)
    write_jsonl(folder / "wikitext/test.jsonl", [{"page": words(count)} for count in (90, 40, 60)])
    wsc = [
        {
            "text": "the door opens with it",
            "span1_index": 1,
            "span1_text": "door",
            "span2_index": 4,
            "span2_text": "it",
            "label": number % 3 == 0,
            "idx": number,
        }
        for number in range(6)
    ]
    write_jsonl(folder / "wsc/validation.jsonl", [{**row, "label": int(row["label"])} for row in wsc])
    sciq = [
        {"question": words(4), "support": words(6), "correct_answer": words(1)}
        | {f"distractor{number}": words(1) for number in (1, 2, 3)}
        for _ in range(4)
    ]
    write_jsonl(folder / "sciq/test.jsonl", sciq)
    hellaswag = [
        {
            "activity_label": words(1),
            "ctx_a": words(5),
            "ctx_b": words(2),
            "ctx": words(7),
            "endings": [words(3) for _ in range(4)],
            "label": str(draw.randrange(4)),
        }
        for _ in range(5)
    ]
    write_jsonl(folder / "hellaswag/validation.jsonl", hellaswag)
    winogrande = [
        {"sentence": f"{words(3)} _ {words(2)}", "option1": "door", "option2": "cell", "answer": str(1 + number % 2)}
        for number in range(4)
    ]
    write_jsonl(folder / "winogrande/validation.jsonl", winogrande)
    write_jsonl(folder / "lambada_openai/test.jsonl", [{"text": words(9)} for _ in range(4)])
    return folder


def opinionated(folder: Path, tokenizer_dir: Path, tied: bool = False, seed: int = 0) -> Path:
    """A checkpoint with weights far from zero: a tiny model must have opinions, or every score is a tie."""
    model = make_checkpoint(folder, tokenizer_dir, tied=tied, seed=seed, block_size=512)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    torch.save(model.state_dict(), folder / "lit_model.pth")
    return folder


@pytest.fixture(scope="session", params=["untied", "tied"])
def checkpoint(request, tmp_path_factory, tokenizer_dir) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param
    return opinionated(folder, tokenizer_dir, tied=request.param == "tied")


@pytest.fixture(scope="session")
def two_models(tmp_path_factory, tokenizer_dir) -> list[Path]:
    """Two checkpoints that disagree."""
    folder = tmp_path_factory.mktemp("models")
    return [opinionated(folder / name, tokenizer_dir, seed=seed) for seed, name in enumerate(("first", "second"))]
