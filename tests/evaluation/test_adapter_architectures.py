"""Packed scores and cached generation equal transformers' plain forward pass, for every kind of architecture."""

import io
import random

import pytest
import torch
from families import CASES, build
from random_models import build_llama

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation import scoring as attention
from inheritune_lit.evaluation.generation import GenerationSettings, generate
from inheritune_lit.evaluation.score_cache import Ranks, ScoreCache, SharedWork
from inheritune_lit.evaluation.scoring import Scorer, to_key
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.model.attention import install_plans

LLAMAS = {
    "llama": {"num_key_value_heads": 4},
    "llama-gqa": {},
    "llama-tied-mqa": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}
OTHERS = {"neox": "make_neox", "gpt2": "make_gpt2"}
FAMILIES = [
    "mistral-window",
    "gemma2",
    "gemma3",
    "phi3-window-partial",
    "mixtral-window",
    "falcon-7b",
    "olmo2",
    "qwen3",
]


@pytest.fixture(params=[*LLAMAS, *OTHERS, *FAMILIES])
def both(request, tmp_path):
    """transformers' model, and ours read from its folder."""
    name = request.param
    if name in OTHERS:
        theirs, folder = request.getfixturevalue(OTHERS[name])()
    else:
        theirs = build(name) if name in CASES else build_llama(**LLAMAS[name])
        folder = tmp_path / name
        theirs.save_pretrained(folder)
    ours = load_reference(folder)
    install_plans(ours)
    return theirs, ours


def _jobs(count: int) -> list[tuple[list[int], list[int]]]:
    """Contexts that share beginnings of all lengths, longer than any window, with continuations of 1-4 tokens."""
    draw = random.Random(1)
    base = [draw.randrange(97) for _ in range(20)]
    jobs = []
    for _ in range(count):
        context = base[: draw.randint(0, 20)] + [draw.randrange(97) for _ in range(draw.randint(1, 14))]
        jobs += [(context, [draw.randrange(97) for _ in range(draw.randint(1, 4))]) for _ in range(2)]
    return jobs


@torch.no_grad()
def _expected(model: torch.nn.Module, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = torch.tensor([context + continuation])
    logprobs_TV = model(ids, use_cache=False).logits[0].float().log_softmax(-1)[len(context) - 1 : -1]
    targets = torch.tensor(continuation)
    return logprobs_TV.gather(1, targets[:, None]).sum().item(), bool((logprobs_TV.argmax(1) == targets).all())


@pytest.mark.parametrize("capacity", [1, 90], ids=["alone", "packed"])
def test_scores_equal_plain_forward_passes(both, capacity, monkeypatch):
    theirs, ours = both
    monkeypatch.setitem(attention._QUERIES, "cpu", 16)  # rows of several blocks
    jobs = _jobs(12)
    with torch.no_grad():  # greedy continuations too
        for context, continuation in jobs[::5]:
            for position in range(len(continuation)):
                ids = torch.tensor([context + continuation[:position]])
                continuation[position] = int(theirs(ids, use_cache=False).logits[0, -1].argmax())
    scorer = Scorer(ours, capacity, SharedWork(ScoreCache(None, {}), Ranks()), io.StringIO())
    scored = scorer.score([(to_key([*context, *cont][:-1]), to_key(cont)) for context, cont in jobs])
    expected = [_expected(theirs, *job) for job in jobs]
    assert any(greedy for _, greedy in expected)
    for (loglikelihood, greedy), (their_loglikelihood, their_greedy) in zip(scored, expected, strict=True):
        assert loglikelihood == pytest.approx(their_loglikelihood, abs=1e-3)
        assert greedy == their_greedy
    apart = sum(len(context) + len(continuation) - 1 for context, continuation in jobs)
    assert scorer.tokens_minimum < scorer.tokens_computed <= apart


def test_plain_forward_passes_stay(both):
    theirs, ours = both
    tokens_BT = torch.randint(97, (2, 30), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BT), theirs(tokens_BT, use_cache=False).logits, atol=2e-4, rtol=1e-4)


def test_greedy_texts_equal_step_by_step(both):
    theirs, ours = both
    draw = random.Random(2)
    prompts = [[draw.randrange(97) for _ in range(length)] for length in (1, 9, 17, 5)]
    settings = GenerationSettings.of({"max_gen_toks": 12, "until": []})
    # EOS is what some prompt says soon, so that sequences of the batch end at different times.
    expected = [_continue(theirs, prompt, 12) for prompt in prompts]
    eos = expected[1][3]
    expected = [ids[: ids.index(eos)] if eos in ids else ids for ids in expected]
    assert generate(ours, prompts, settings, eos, lambda ids: "") == expected


@torch.no_grad()
def _continue(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("asked", "is_greedy"),
    [
        ({}, True),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.95}, True),
        ({"temperature": 0.0, "top_p": 1.0, "top_k": 1}, True),
        ({"do_sample": True}, False),
        ({"temperature": 0.7}, False),
    ],
)
def test_sampling_is_refused_where_transformers_would_sample(asked, is_greedy):
    if is_greedy:
        assert GenerationSettings.of(asked) == GenerationSettings(256, ())
    else:
        with pytest.raises(UserError, match="do_sample=True, which is not offered"):
            GenerationSettings.of(asked)
