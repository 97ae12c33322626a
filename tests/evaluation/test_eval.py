"""Scores equal those of lm-eval's own transformers model, on the same prompts; bad input is one clear line."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from tiny import make_packed

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.export import export
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.harness import evaluate
from inheritune_lit.evaluation.held_out import validate
from inheritune_lit.evaluation.open_lm import open_lm
from inheritune_lit.evaluation.tasks import TaskResolver
from inheritune_lit.model.load import load_model
from inheritune_lit.tokenizer import Tokenizer

SUBJECTS = ("virology", "anatomy")


def hf_scores(folder: Path, rows_dir: Path, tasks: list[str], tmp_path: Path) -> dict:
    """lm-eval's own model on the exported checkpoint; the tokenizer is ours, so that only the models differ."""
    pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    exported = tmp_path / "hf"
    export(ExportArgs(folder, exported))
    ours = Tokenizer(folder)

    class TheirLM(HFLM):
        def tok_encode(self, string, add_special_tokens=None, left_truncate_len=None, **kwargs):
            ids = ours.encode(string)
            return ids[-left_truncate_len:] if left_truncate_len else ids

    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel

    stand_in = PreTrainedTokenizerFast(
        tokenizer_object=Fast(WordLevel({"</s>": 0}, unk_token="</s>")), eos_token="</s>", pad_token="</s>"
    )
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, attn_implementation="eager")
    lm = TheirLM(pretrained=model, tokenizer=stand_in, batch_size=4, device="cpu", max_length=512)
    type(lm).prefix_token_id = property(lambda self: ours.eos_id)
    resolved = TaskResolver(rows_dir, None, tmp_path).resolve(tasks)
    chosen = {"tasks": resolved.specs, "task_manager": resolved.manager}
    return simple_evaluate(model=lm, **chosen, log_samples=True, bootstrap_iters=10)


def our_samples(folder: Path, rows_dir: Path, tasks: list[str], tmp_path: Path) -> dict:
    lm = open_lm(folder, max_batch_tokens=300)
    resolved = TaskResolver(rows_dir, None, tmp_path).resolve(tasks)
    chosen = {"tasks": resolved.specs, "task_manager": resolved.manager}
    return simple_evaluate(model=lm, **chosen, log_samples=True, bootstrap_iters=0)


def test_scores_and_loglikelihoods_equal_lm_evals_hf_model(checkpoint, rows_dir, tmp_path):
    tasks = ["piqa", "mmlu", "wikitext"]
    theirs = hf_scores(checkpoint, rows_dir, tasks, tmp_path)
    (tmp_path / "ours").mkdir()
    samples = our_samples(checkpoint, rows_dir, tasks, tmp_path / "ours")["samples"]
    assert set(samples) == {"piqa", "mmlu_virology", "mmlu_anatomy", "wikitext"}
    for name, judged in theirs["samples"].items():
        assert [s["doc_id"] for s in samples[name]] == [s["doc_id"] for s in judged]
        for mine, its in zip(samples[name], judged, strict=True):
            assert mine["arguments"] == its["arguments"]
            for ours, other in zip(mine["filtered_resps"], its["filtered_resps"], strict=True):
                if name == "wikitext":
                    assert ours == pytest.approx(other, abs=1e-3)
                else:
                    assert ours[0] == pytest.approx(other[0], abs=1e-4)
                    assert ours[1] == other[1]

    results = evaluate(EvaluateArgs([checkpoint], tasks=",".join(tasks), data_dir=rows_dir))
    scored = results.checkpoints[0]
    for name, metrics in scored.tasks.items():
        for metric, score in metrics.items():
            assert score["value"] == pytest.approx(theirs["results"][name][f"{metric},none"], rel=1e-4)
    subjects = [theirs["results"][f"mmlu_{subject}"] for subject in SUBJECTS]
    macro = next(cell for cell in scored.cells if cell.title == "mmlu")
    assert macro.value == pytest.approx(100 * sum(s["acc,none"] for s in subjects) / 2)
    assert macro.stderr == pytest.approx(100 * math.hypot(*(s["acc_stderr,none"] for s in subjects)) / 2)
    assert macro.n == 16
    assert scored.tasks["mmlu_virology"]["acc"]["n"] == 8


@pytest.mark.parametrize("task", ["piqa", "arc_easy", "logiqa", "winogrande", "lambada_openai", "mmlu_virology"])
def test_real_rows_are_scored(two_models, inheritune_data, task):
    scored = evaluate(
        EvaluateArgs(two_models[:1], tasks=task, data_dir=inheritune_data / "tasks", limit=4)
    ).checkpoints[0]
    assert scored.tasks[task]["acc"]["n"] == 4


def test_loglikelihood_by_brute_force(checkpoint):
    model = load_model(checkpoint)
    lm = open_lm(checkpoint, max_batch_tokens=8)
    pairs = [([5, 6, 7], [8, 9]), ([5, 6, 7], [10]), ([5, 6, 7], [8]), ([300, 2], [17, 18, 19, 20])]
    scored = lm._loglikelihood_tokens([(None, context, continuation) for context, continuation in pairs])
    for (context, continuation), (loglikelihood, greedy) in zip(pairs, scored, strict=True):
        total, is_greedy = 0.0, True
        for position, token in enumerate(continuation):
            with torch.no_grad():
                logprobs_V = model(torch.tensor([context + continuation[:position]]))[0, -1].log_softmax(-1)
            total += logprobs_V[token].item()
            is_greedy &= logprobs_V.argmax().item() == token
        assert loglikelihood == pytest.approx(total, abs=1e-4)
        assert greedy == is_greedy


def test_long_prompts_lose_their_beginning_and_are_counted(checkpoint):
    lm = open_lm(checkpoint, max_batch_tokens=40)
    context = [(7 * i) % 400 for i in range(700)]
    whole, cut = lm._loglikelihood_tokens([(None, context, [8, 9]), (None, context[-511:], [8, 9])])
    assert whole[0] == pytest.approx(cut[0], abs=1e-6)
    assert lm.truncated == 1


@pytest.mark.parametrize(
    ("native", "asked", "expected"), [(1, None, "bfloat16"), (0, None, "float32"), (1, "float32", "float32")]
)
def test_dtype_is_what_the_gpu_has(checkpoint, tmp_path, tokenizer_dir, monkeypatch, native, asked, expected):
    packed = make_packed(tmp_path / "packed", tokenizer_dir)
    monkeypatch.setattr("inheritune_lit.evaluation.harness.has_native_bf16", lambda: native)
    found = evaluate(EvaluateArgs([checkpoint], val_data=packed, val_blocks=2, dtype=asked, out_dir=tmp_path / "out"))
    recorded = json.loads((tmp_path / "out" / checkpoint.name / "held_out.json").read_text())
    assert found.settings["dtype"] == recorded["identity"]["dtype"] == expected
    whole = validate(load_model(checkpoint, getattr(torch, expected)), PackedDataset(packed, "val", 512), 2, 2)
    assert found.checkpoints[0].held_out["loss"] == pytest.approx(whole.loss, abs=1e-5)


def test_held_out_loss_is_validates(checkpoint, tmp_path, tokenizer_dir):
    packed = make_packed(tmp_path / "packed", tokenizer_dir)
    results = evaluate(EvaluateArgs([checkpoint], val_data=packed, val_blocks=5, max_seq_length=64))
    expected = validate(load_model(checkpoint), PackedDataset(packed, "val", 64), 2, 5)
    held_out = results.checkpoints[0].held_out
    assert held_out["loss"] == pytest.approx(expected.loss, abs=1e-5)
    assert held_out["stderr"] == pytest.approx(expected.stderr, rel=1e-4)


def test_a_task_file_brings_its_own_rows(two_models, tmp_path):
    rows = [{"context": "the door", "choices": [" opens", " water"], "gold": 0}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: rows.jsonl\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: context\ndoc_to_target: gold\ndoc_to_choice: choices\n"
        'target_delimiter: ""\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n'
    )
    scored = evaluate(EvaluateArgs(two_models[:1], tasks=str(tmp_path / "mine.yaml"))).checkpoints[0]
    lm = open_lm(two_models[0], max_batch_tokens=40)
    encode = Tokenizer(two_models[0]).encode
    context = encode("the door")
    both = [(None, context, encode(f"the door{choice}")[len(context) :]) for choice in (" opens", " water")]
    (first, _), (second, _) = lm._loglikelihood_tokens(both)
    assert scored.tasks["mine"]["acc"]["value"] == float(first > second)
    assert scored.tasks["mine"]["acc"]["n"] == 3


WITHOUT_TRANSFORMERS = """
import importlib.metadata as metadata, importlib.util as util, sys

def hide(function, answer):
    def call(name, *rest):
        return answer(name) if name.split(".")[0] == "transformers" else function(name, *rest)
    return call

def absent(name):
    raise metadata.PackageNotFoundError(name)

util.find_spec = hide(util.find_spec, lambda name: None)
metadata.version, metadata.distribution = hide(metadata.version, absent), hide(metadata.distribution, absent)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from inheritune_lit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_no_transformers_is_needed(two_models, rows_dir):
    arguments = ["eval", "--checkpoint_dir", two_models[0], "--tasks", "piqa", "--data_dir", rows_dir, "--limit", "2"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| piqa acc | piqa acc_norm |" in done.stdout


def _arguments(checkpoint: Path, rows_dir: Path, **changes) -> dict:
    return {"checkpoint_dir": [checkpoint], "tasks": "piqa", "data_dir": rows_dir, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": "piqua"}, r"unknown task 'piqua'; did you mean piqa"),
        ({"tasks": "mmlu_stem"}, r"'mmlu_stem' is a group of tasks"),
        ({"tasks": "arc_easy"}, r"no local rows of task 'arc_easy': .*arc_easy is missing"),
        ({"tasks": "mmlu_astronomy"}, r"test rows of MMLU .* none of subject 'astronomy'"),
        ({"tasks": "nowhere.yaml"}, r"cannot read the task file nowhere.yaml"),
        ({"tasks": None}, r"nothing to score"),
        ({"limit": 0}, r"--limit is 0"),
        ({"max_batch_tokens": 0}, r"--max_batch_tokens is 0"),
        ({"data_dir": Path("nowhere")}, r"no folder of task rows at nowhere"),
        ({"checkpoint_dir": [Path("nowhere")]}, r"no checkpoint folder at nowhere"),
        ({"tasks": None, "val_data": Path("nowhere")}, r"no packed data at nowhere"),
    ],
)
def test_bad_input_is_one_line(two_models, rows_dir, tmp_path, changes, told):
    with pytest.raises(UserError, match=told) as caught:
        evaluate(EvaluateArgs(**_arguments(two_models[0], rows_dir, **changes), out_dir=tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_checkpoints_are_looked_at_before_rows(two_models, rows_dir, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copytree(two_models[0], tmp_path / "run" / "final")
    with pytest.raises(UserError, match=r"did you mean .*run/final"):
        evaluate(EvaluateArgs(**_arguments(tmp_path / "run", rows_dir)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        evaluate(EvaluateArgs(**_arguments(tmp_path / "empty", rows_dir)))
    with pytest.raises(UserError, match="is not a folder; give another --out_dir"):
        evaluate(EvaluateArgs(**_arguments(two_models[0], rows_dir), out_dir=two_models[0] / "lit_model.pth" / "out"))
    assert "reading" not in capsys.readouterr().err


def test_rows_in_the_wrong_split_are_named(two_models, rows_dir, tmp_path):
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "train.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"has none of validation.jsonl"):
        evaluate(EvaluateArgs(two_models[:1], tasks="piqa", data_dir=tmp_path))
