"""Subsets hold the tokens asked for, at random and the same every time; equal documents are met once."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron_pair import parse_pair
from random_text import make_documents

from inheritune_lit.data import shards
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.plan import KEYS, cut_keys, keep_share, quotas_of
from inheritune_lit.data.prepare import prepare
from inheritune_lit.errors import UserError


def packed(folder, domain: str, splits=("train", "val")) -> list[tuple[int, ...]]:
    """Documents of a domain, as token ids."""
    prefixes = [folder / split / domain for split in splits]
    return [tuple(ids) for prefix in prefixes if prefix.with_suffix(".bin").exists() for ids in parse_pair(prefix)]


@pytest.fixture
def many(tmp_path):
    """Four domains of different sizes, many small documents."""
    for number, (domain, count) in enumerate({"arxiv": 300, "cc_2019-30": 900, "cc_2023-06": 600, "c4": 400}.items()):
        texts = [text[: 60 + 17 * (n % 30)] for n, text in enumerate(make_documents(count, number))]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{domain}.jsonl").write_text(rows)
    folder = tmp_path / "many"
    folder.mkdir()
    for file in tmp_path.glob("*.jsonl"):
        file.rename(folder / file.name)
    return folder


def test_a_mixture_gives_each_domain_its_part(many, tokenizer_dir, tmp_path, logged):
    prepare(PrepareArgs(many, tokenizer_dir, tmp_path / "all", val_fraction=0.1))
    options = {"max_tokens": 60_000, "mixture": {"cc": 2, "arxiv": 1, "c4": 0}, "val_fraction": 0.1}
    prepare(PrepareArgs(many, tokenizer_dir, tmp_path / "out", **options))
    tokens = {}
    for domain in ("arxiv", "cc_2019-30", "cc_2023-06", "c4"):
        for split in ("train", "val"):
            drawn = packed(tmp_path / "out", domain, [split])
            assert set(drawn) <= set(packed(tmp_path / "all", domain, [split]))  # the split stays
            tokens[domain] = tokens.get(domain, 0) + sum(map(len, drawn))
    assert "gave only" not in logged.text
    assert tokens["c4"] == 0
    longest = 400
    assert 20_000 - longest < tokens["arxiv"] <= 20_000
    assert 40_000 - longest < tokens["cc_2019-30"] + tokens["cc_2023-06"] <= 40_000
    assert 0.5 < tokens["cc_2019-30"] / tokens["cc_2023-06"] / 1.5 < 2  # as they are in the corpus


def test_a_subset_depends_on_seed_and_text_alone(many, tokenizer_dir, tmp_path, monkeypatch):
    def drawn(name: str, source=many, **options) -> list[set]:
        prepare(
            PrepareArgs(source, tokenizer_dir, tmp_path / name, val_fraction=0.1, **{"max_tokens": 50_000, **options})
        )
        domains = json.loads((tmp_path / name / "inheritune.json").read_text())["domains"]
        return set().union(*(packed(tmp_path / name, domain) for domain in domains))

    first = drawn("first")
    monkeypatch.setattr(shards, "_RANGE_BYTES", 5_000)
    assert drawn("cut otherwise") == first
    moved = tmp_path / "moved"
    moved.mkdir()
    lines = [line for file in sorted(many.iterdir()) for line in file.read_text().splitlines(keepends=True)]
    random.Random(0).shuffle(lines)
    (moved / "one.jsonl").write_text("".join(lines))
    assert drawn("in another order", source=moved) == first
    assert drawn("larger", max_tokens=70_000) > first
    other = drawn("other seed", seed=1)
    assert len(other & first) < 0.6 * len(first)


def test_more_than_there_is_takes_all_and_says_so(many, tokenizer_dir, tmp_path, logged):
    prepare(PrepareArgs(many, tokenizer_dir, tmp_path / "all", val_fraction=0.1))
    prepare(PrepareArgs(many, tokenizer_dir, tmp_path / "out", val_fraction=0.1, max_tokens=10**9))
    assert "arxiv, c4, cc_2019-30, cc_2023-06 gave only" in logged.text
    assert packed(tmp_path / "out", "c4") == packed(tmp_path / "all", "c4")


def test_a_subset_takes_no_more_files(many, tokenizer_dir, tmp_path):
    prepare(PrepareArgs(many, tokenizer_dir, tmp_path / "out", val_fraction=0.1, max_tokens=50_000))
    (many / "more.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"is a random subset of 4 files, which .*more\.jsonl would change"):
        prepare(PrepareArgs(many, tokenizer_dir, tmp_path / "out", val_fraction=0.1, max_tokens=50_000))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=60),
    st.integers(0, 900),
)
def test_the_cut_keeps_the_smallest_keys_that_fit(documents, tokens):
    keys = np.array([key for key, _ in documents], dtype=np.uint64)
    lengths = np.array([length for _, length in documents], dtype=np.int32)
    cut = cut_keys(keys, lengths, tokens)
    kept = lengths[[key < cut for key in keys.tolist()]].sum()
    assert kept <= tokens
    beyond = [key for key in keys.tolist() if key >= cut]
    if beyond:  # the next key's documents would not fit as well
        assert kept + lengths[keys == min(beyond)].sum() > tokens
    else:
        assert cut == KEYS


@pytest.mark.parametrize("skew", [0.3, 1.5])
@pytest.mark.parametrize("tokens", [3_000, 100_000, 1_000_000])
def test_the_share_lets_enough_through(skew, tokens):
    """Simulated corpora: a share estimated from a tenth of the documents misses the quota in none of 50 draws."""
    draw = np.random.default_rng(0)
    lengths = np.ceil(draw.lognormal(4, skew, 40_000)).astype(int)
    share = keep_share(tokens, lengths[:4000].tolist(), 4000, 40_000, margin=1.1)
    drawn = [lengths[draw.random(40_000) < share].sum() for _ in range(50)]
    assert min(drawn) >= min(tokens, lengths.sum())
    assert share < 1 and np.mean(drawn) < 2 * tokens + 10 * lengths.max()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mixture": {"cc": 1}}, "give --max_tokens too"),
        ({"mixture": {"cc": 1}, "max_tokens": 5}, "--mixture leaves out arxiv, c4"),
        (
            {"mixture": {"cc": 1, "book": 1}, "max_tokens": 5},
            "--mixture names 'book', the corpus has only arxiv, c4",
        ),
        ({"mixture": {"cc": -1}, "max_tokens": 5}, "not negative"),
        ({"mixture": {"cc": 0}, "max_tokens": 5}, "not all zero"),
        ({"max_tokens": 0}, "--max_tokens is 0"),
        ({"max_tokens": 5, "seed": -1}, "--seed is -1"),
    ],
)
def test_wrong_mixtures(options, told):
    with pytest.raises(UserError, match=told):
        quotas_of(PrepareArgs("text", "tokenizer", "out", **options), ["arxiv", "c4", "cc_2019-30"])


def test_duplicates_are_dropped_across_files_domains_and_calls(tokenizer_dir, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    texts = make_documents(60, 5)

    def write(name: str, chosen: list[str]) -> None:
        (source / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))

    write("b.jsonl", texts[:40] + texts[10:20])
    write("c.jsonl", texts[30:50])
    options = {"val_fraction": 0.2, "drop_duplicates": True}
    prepare(PrepareArgs(source, tokenizer_dir, tmp_path / "out", **options))
    manifest = json.loads((tmp_path / "out" / "inheritune.json").read_text())
    assert manifest["duplicates"] == 20
    assert [len(packed(tmp_path / "out", domain)) for domain in "bc"] == [40, 10]

    write("a.jsonl", texts[45:])  # of these 15 five are packed already, and what is packed stays
    prepare(PrepareArgs(source, tokenizer_dir, tmp_path / "out", **options))
    manifest = json.loads((tmp_path / "out" / "inheritune.json").read_text())
    assert manifest["duplicates"] == 25
    together = [ids for domain in "abc" for ids in packed(tmp_path / "out", domain)]
    assert [len(packed(tmp_path / "out", domain)) for domain in "abc"] == [10, 40, 10]
    assert len(set(together)) == len(together) == 60
    counted = [manifest["domains"][domain][split]["documents"] for domain in "abc" for split in ("train", "val")]
    assert sum(counted) == 60


def test_duplicates_and_a_subset_together(many, tokenizer_dir, tmp_path):
    doubled = tmp_path / "doubled"
    doubled.mkdir()
    for file in many.iterdir():
        lines = file.read_text().splitlines(keepends=True)
        (doubled / file.name).write_text("".join(lines + lines[::5]))
    options = {"val_fraction": 0.1, "max_tokens": 50_000}
    prepare(PrepareArgs(many, tokenizer_dir, tmp_path / "single", **options))
    prepare(PrepareArgs(doubled, tokenizer_dir, tmp_path / "double", drop_duplicates=True, **options))
    for domain in ("arxiv", "c4", "cc_2019-30", "cc_2023-06"):
        assert packed(tmp_path / "double", domain) == packed(tmp_path / "single", domain)
