"""The adapter against lm-eval's own transformers model: both read the same folder, each with its own tokenizer code."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.open_lm import open_lm

ROWS = {  # task: its folder, split and rows to take
    "piqa": ("piqa", "validation", 12),
    "winogrande": ("winogrande", "validation", 12),
    "lambada_openai": ("lambada_openai", "test", 8),
    "arc_easy": ("arc_easy", "validation", 8),
    "truthfulqa_mc2": ("truthfulqa_mc", "validation", 6),
    "boolq": ("boolq", "validation", 6),
    "wnli": ("wnli", "validation", 6),
    "logiqa": ("logiqa", "test", 4),
}


@pytest.fixture(scope="module", params=["none", "model"])
def bos(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(hf_checkpoint, bos) -> HFLM:
    """lm-eval's model; without BOS it takes EOS for an empty context here, as the paper did."""
    settings = {} if bos == "model" else {"add_bos_token": False, "prefix_token_id": 1}
    return HFLM(pretrained=str(hf_checkpoint), batch_size=4, device="cpu", dtype="float32", **settings)


@pytest.fixture(scope="module")
def ours(hf_checkpoint, bos):
    return open_lm(hf_checkpoint, bos=bos, max_batch_tokens=1500)


def requests(*arguments: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=pair) for pair in arguments]


TEXT = "def the_model(self, text):\n    return 'a cat' if text else None  # what is it\n" * 12


def test_odd_requests(theirs, ours, hf_checkpoint):
    pairs = [
        ("", "the tokens of a model"),
        ("", "<s>again"),
        ("the model ", "reads"),
        ("the model  \n", " reads"),
        ("the model", " reads every text"),
        ("the model", " reads every text"),
        ("the model", " reads"),
        ("<s>the model", " reads"),
        (TEXT * 2, " is cut"),
        ("é — ü", "ß"),
    ]
    expected = theirs.loglikelihood(requests(*pairs), disable_tqdm=True)
    scored = ours.loglikelihood(requests(*pairs))
    for pair, (loglikelihood, greedy), (theirs_, their_greedy) in zip(pairs, scored, expected, strict=True):
        assert loglikelihood == pytest.approx(theirs_, abs=1e-3), pair
        assert greedy == their_greedy
    assert ours.truncated == 1


def test_whole_texts(theirs, ours, bos):
    texts = ["the model", TEXT, TEXT * 3, "a"]
    # With BOS, lm-eval's model scores the BOS token itself, given BOS: it is no part of the text.
    theirs = theirs if bos == "none" else _without_scored_bos(theirs)
    expected = theirs.loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests(*((text,) for text in texts))) == pytest.approx(expected, abs=5e-3)


def _without_scored_bos(lm: HFLM) -> SimpleNamespace:
    def rolling(asked, disable_tqdm):
        plain = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=2, device="cpu", add_bos_token=False)
        plain.custom_prefix_token_id = 0
        return plain.loglikelihood_rolling(asked, disable_tqdm=disable_tqdm)

    return SimpleNamespace(loglikelihood_rolling=rolling)


@pytest.mark.parametrize("settings", [{"until": ["\n", "the "], "max_gen_toks": 24}, {"until": [], "max_gen_toks": 9}])
def test_generated_texts(theirs, ours, settings):
    contexts = ["the model", "def test(", "a", TEXT, TEXT * 3, "import torch\nfrom"]
    asked = requests(*((context, {**settings, "do_sample": False}) for context in contexts))
    expected = theirs.generate_until(asked, disable_tqdm=True)
    assert len(set(expected)) > 3
    assert ours.generate_until(asked) == expected


def test_real_rows(theirs, ours, bos, inheritune_data, tmp_path):
    """Same predictions and metrics on the rows of real tasks."""
    if bos == "model":
        pytest.skip("one of them is enough for the prompts")
    results = [_evaluate(lm, inheritune_data / "tasks", tmp_path / str(n)) for n, lm in enumerate((theirs, ours))]
    compared = 0
    for name in ROWS:
        for mine, other in zip(results[1]["samples"][name], results[0]["samples"][name], strict=True):
            assert mine["arguments"] == other["arguments"]
            for ours_, theirs_ in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
                assert ours_[0] == pytest.approx(theirs_[0], abs=1e-3)
                assert ours_[1] == theirs_[1]
                compared += 1
        for metric, value in results[0]["results"][name].items():
            if isinstance(value, float):
                assert results[1]["results"][name][metric] == pytest.approx(value, rel=1e-4), (name, metric)
    assert compared > 150


def _evaluate(lm, rows: Path, scratch: Path) -> dict:
    tasks = [
        {
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "training_split": None,
            "validation_split": split if split == "validation" else None,
            "test_split": split if split == "test" else None,
            "fewshot_split": None,
            "dataset_kwargs": {
                "data_files": {split: str(rows / folder / f"{split}.jsonl")},
                "cache_dir": str(scratch),
            },
        }
        for name, (folder, split, _) in ROWS.items()
    ]
    samples = {name: list(range(count)) for name, (_, _, count) in ROWS.items()}
    group = [{"group": "real", "task": tasks}]
    return simple_evaluate(model=lm, tasks=group, samples=samples, log_samples=True, bootstrap_iters=0)


def test_what_cannot_be_asked(hf_checkpoint):
    lm = open_lm(hf_checkpoint, max_batch_tokens=500)
    with pytest.raises(UserError, match=r"num_beams=4, which is not offered"):
        lm.generate_until(requests(("a", {"num_beams": 4})))
    with pytest.raises(UserError, match=r"asks for 768 new tokens, the model's whole context is 768"):
        lm.generate_until(requests(("a", {"max_gen_toks": 768})))
    with pytest.raises(UserError, match=r"a continuation of 0 tokens"):
        lm.loglikelihood(requests(("a", "")))
    with pytest.raises(UserError, match=r"a continuation of \d+ tokens .* context is 768"):
        lm.loglikelihood(requests(("a", TEXT * 9)))


def test_a_tokenizer_with_ids_that_the_model_does_not_know(hf_checkpoint, tmp_path):
    from transformers import AutoTokenizer

    for file in hf_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path)
    lm = open_lm(tmp_path)
    lm.loglikelihood(requests(("a", "horse")))
    with pytest.raises(UserError, match=r"makes id 600, the model's vocabulary is 600"):
        lm.loglikelihood(requests(("a", "zebra")))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "float16"}, "--dtype is 'float16'"),
        ({"bos": "always"}, "--bos is 'always'"),
        ({"quantize": "int3"}, "--quantize is 'int3'"),
        ({"max_batch_tokens": 0}, "--max_batch_tokens is 0"),
        ({"checkpoint_dir": Path("nowhere")}, "no checkpoint folder at nowhere"),
    ],
)
def test_bad_choices_are_one_line(hf_checkpoint, changes, told):
    with pytest.raises(UserError, match=told) as caught:
        open_lm(**{"checkpoint_dir": hf_checkpoint, **changes})
    assert "\n" not in str(caught.value)


def test_missing_weights_are_told(hf_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in hf_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"\(2 layers\): 1 tensors are missing, such as model.layers.1.mlp.up_proj"):
        open_lm(tmp_path)


def test_bf16_scores_are_near_and_softmax_is_fp32(hf_checkpoint):
    pairs = [("the model", f" reads {word}") for word in ("text", "the", "def", "self")]
    exact = open_lm(hf_checkpoint, max_batch_tokens=500).loglikelihood(requests(*pairs))
    rounded = open_lm(hf_checkpoint, dtype="bfloat16", max_batch_tokens=500).loglikelihood(requests(*pairs))
    for (one, _), (other, _) in zip(exact, rounded, strict=True):
        assert one != other
        assert one == pytest.approx(other, rel=0.05)
        # A bf16 number has 8 bits of significand; a sum of fp32 log-probabilities has more.
        assert float(torch.tensor(other).bfloat16()) != other
