"""Contexts of white space, merged tokens and damaged weights: the score that transformers gives, or a refusal."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.open_lm import open_lm

BLANKS = ["", "\n", " ", "\t\n  ", "\u00a0", "\u3000\n", "\r\n\r\n"]
PLAIN = [("in the file", " name of the"), ("on a", " name"), ("zebra", " name of the"), ("\u200b", "abc")]


def request(*pair, **more):
    return SimpleNamespace(args=pair, **more)


@pytest.fixture(scope="module")
def oracle(hf_checkpoint):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(hf_checkpoint), AutoTokenizer.from_pretrained(hf_checkpoint)

    def score(before: list[int], text: str) -> float:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([[*before, *ids]])).logits[0].log_softmax(dim=1)
        return math.fsum(float(logprobs[len(before) + at - 1, token]) for at, token in enumerate(ids))

    return score, tokenizer


@pytest.mark.parametrize("blank", BLANKS)
def test_a_context_of_white_space_is_an_empty_one(hf_checkpoint, oracle, blank):
    score, tokenizer = oracle
    alone = open_lm(hf_checkpoint).loglikelihood([request(*pair) for pair in PLAIN])
    lm = open_lm(hf_checkpoint)
    got = lm.loglikelihood([request(blank, " abc"), request(blank, "x"), *(request(*pair) for pair in PLAIN)])
    for (found, _), continuation in zip(got, (" abc", "x"), strict=False):
        assert found == pytest.approx(score([tokenizer.eos_token_id], blank + continuation), abs=2e-3)
    for (after, _), (before, _) in zip(got[2:], alone, strict=True):
        assert after == pytest.approx(before, abs=1e-4)


def test_a_continuation_that_merges_into_its_context_is_scored_alone(hf_checkpoint, oracle):
    score, tokenizer = oracle
    words = [tokenizer.decode([i]) for i in range(300, 600)]
    word = next(w for w in words if len(w) == 5 and w.isalpha() and len(tokenizer(w[:3])["input_ids"]) == 2)
    before = tokenizer(word[:3], add_special_tokens=False)["input_ids"]
    assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == len(before)
    (found, _), *_ = open_lm(hf_checkpoint).loglikelihood([request(word[:3], word[3:])])
    assert found == pytest.approx(score(before, word[3:]), abs=2e-3)


def test_an_answer_of_nothing_names_its_row(hf_checkpoint):
    with pytest.raises(UserError, match=r"row 4: a continuation of 0 tokens"):
        open_lm(hf_checkpoint).loglikelihood([request("a", "b", doc_id=0), request("a", "", doc_id=3)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("loglikelihood", ("a", " b")),
        ("loglikelihood_rolling", ("a b",)),
        ("generate_until", ("a", {"max_gen_toks": 3})),
    ],
)
def test_a_model_that_computes_no_numbers_has_no_scores(hf_checkpoint, value, kind, asked):
    lm = open_lm(hf_checkpoint)
    lm.model.transformer.ln_f.weight.data[3] = value
    with pytest.raises(UserError, match="the model computes"):
        getattr(lm, kind)([request(*asked)])
