"""The search of layers against transformers, against brute force, and killed; slices of what it found."""

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from tiny import make_checkpoint, make_packed
from torch.nn import functional as F

from inheritune_lit.analysis.args import SearchArgs
from inheritune_lit.analysis.search import search_layers, unsearched, without_one
from inheritune_lit.analysis.sequences import draw_sequences
from inheritune_lit.cli import main
from inheritune_lit.data.manifest import content_sha256
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.inherit.searched import Search, load_search
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.inherit.stream import LayerStream, group_sizes, layer_runs, score_subsets
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.model.load import load_model

B, T = 3, 16


@pytest.fixture
def tokens_BT1(monkeypatch) -> torch.Tensor:
    """Random sequences, given to the search in place of text."""
    tokens = torch.randint(0, 97, (B, T + 1), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("inheritune_lit.analysis.search.draw_sequences", lambda *args: tokens)
    return tokens


def search(ref: Path, out_dir: Path, **options) -> Search:
    options = {"num_sequences": B, "seq_length": T, "repair": "none"} | options
    found = search_layers(SearchArgs(ref, "text", out_dir, **options)).search
    assert found is not None
    return found


def losses_of(logits_BTV: torch.Tensor, tokens_BT1: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT1[:, 1:], reduction="none").mean(dim=1)


@torch.no_grad()
def score_alone(model, layers: tuple[int, ...], tokens_BT1: torch.Tensor, score: str = "loss", bf16: bool = False):
    """Each sequence's loss of a model without the other layers, or KL of its predictions from the whole model's."""
    blocks = model.transformer.h
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole_BTV = model(tokens_BT1[:, :-1]) if score == "kl" else None
        model.transformer.h = torch.nn.ModuleList(blocks[layer] for layer in layers)
        logits_BTV = model(tokens_BT1[:, :-1])
    model.transformer.h = blocks
    if whole_BTV is None:
        return losses_of(logits_BTV.float(), tokens_BT1)
    both = (each_BTV.double().log_softmax(dim=-1) for each_BTV in (logits_BTV, whole_BTV))
    return F.kl_div(*both, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)


def scored(folder: Path, subsets: list[tuple[int, ...]], tokens_BT1: torch.Tensor, **options) -> torch.Tensor:
    """Scores (subsets, B) of one call; ``kl`` and ``counts``, a list that gets the layers that are loaded."""
    counts = options.pop("counts", [])
    with resolve(str(folder)) as resolved, torch.no_grad():
        stream = LayerStream(resolved.open().reference, T, torch.device("cpu"), counts.append)
        x_BTC, whole_BTC = stream.embed(tokens_BT1[:, :-1]), None
        if options.pop("kl", False):
            whole_BTC = x_BTC
            for layer in range(stream.config.n_layer):
                with stream.layer(layer) as (_, run):
                    whole_BTC = run(whole_BTC)
        return score_subsets(stream, x_BTC, tokens_BT1[:, 1:], subsets, whole_BTC, **options)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_steps_are_those_of_a_loop_over_transformers(family, make_llama, make_gpt2, tokens_BT1, tmp_path):
    model, folder = make_llama(num_hidden_layers=6) if family == "llama" else make_gpt2(n_layer=6)
    found = search(folder, tmp_path / "out", n_min=1)
    inner = model.model if family == "llama" else model.transformer
    name = "layers" if family == "llama" else "h"
    whole, kept = list(getattr(inner, name)), list(range(6))

    def loss(layers: list[int]) -> torch.Tensor:
        setattr(inner, name, torch.nn.ModuleList(whole[layer] for layer in layers))
        with torch.no_grad():
            return losses_of(model(input_ids=tokens_BT1[:, :-1], use_cache=False).logits, tokens_BT1)

    assert found.whole.score == pytest.approx(loss(kept).mean().item(), rel=1e-5)
    while len(kept) > 1:
        kept = min(([each for each in kept if each != gone] for gone in kept), key=lambda each: loss(each).mean())
        step = found.found[str(len(kept))]
        assert step.layers == kept
        assert step.score == pytest.approx(loss(kept).mean().item(), rel=1e-5)
        assert step.stderr == pytest.approx(loss(kept).std().item() / B**0.5, rel=1e-4)
    assert found.finished and found.lowest == 1 and found.beam == [kept]


@pytest.mark.parametrize("score", ["loss", "kl"])
def test_the_widest_beam_finds_the_best_of_all_subsets(score, make_llama, tokens_BT1, tmp_path):
    _, folder = make_llama(num_hidden_layers=8)
    found = search(folder, tmp_path / "out", n_min=2, beam=100, score=score)
    model = load_reference(folder)
    scores = {
        layers: score_alone(model, layers, tokens_BT1, score).mean().item()
        for n in range(2, 8)
        for layers in combinations(range(8), n)
    }
    for n in range(2, 8):
        best = min((layers for layers in scores if len(layers) == n), key=scores.get)
        assert tuple(found.found[str(n)].layers) == best
        assert found.found[str(n)].score == pytest.approx(scores[best], rel=1e-4)
    assert len(found.beam) == math.comb(8, 2)
    for way, by_depth in found.compared.items():
        for n, chosen in by_depth.items():
            assert len(chosen.layers) == int(n)
            assert chosen.score == pytest.approx(scores[tuple(chosen.layers)], rel=1e-4), way
    # A narrow beam lies between greedy search and all.
    narrow = {beam: search(folder, tmp_path / str(beam), n_min=2, beam=beam, score=score) for beam in (1, 3)}
    for n in found.found:
        assert found.found[n].score <= narrow[3].found[n].score + 1e-6
        assert tuple(narrow[3].found[n].layers) in scores


SUBSETS = [(0, 1, 2, 3, 4), (0, 2, 4), (0, 2), (), (1, 2, 3, 4), (0, 2, 4), (3,), (0, 1, 3, 4), (4,)]


@pytest.mark.parametrize("score", ["loss", "kl"])
def test_subsets_together_have_the_scores_that_each_has_alone(score, make_llama, tokens_BT1, monkeypatch):
    _, folder = make_llama(tie_word_embeddings=True)
    monkeypatch.setattr("inheritune_lit.inherit.stream.LOGITS", 97 * 5)  # logits of five tokens at a time
    runs: list[int] = []
    scores_SB = scored(folder, SUBSETS, tokens_BT1, kl=score == "kl", counts=runs)
    assert scores_SB.shape == (len(SUBSETS), B) and scores_SB.dtype == torch.float64
    model = load_reference(folder)
    for layers, scores_B in zip(SUBSETS, scores_SB, strict=True):
        alone_B = score_alone(model, layers, tokens_BT1, score).double()
        torch.testing.assert_close(scores_B, alone_B, rtol=1e-4, atol=1e-5)
    # Prefixes: 0 01 012 0123 01234, 02 024, 1 12 123 1234, 3, 013 0134, 4.
    assert len(runs) == layer_runs(SUBSETS) == 15 and set(runs) == {B}


def test_groups_of_sequences_and_of_subsets_do_not_change_scores(make_llama, tokens_BT1):
    _, folder = make_llama()
    together_SB = scored(folder, SUBSETS, tokens_BT1, kl=True)
    state = T * 32 * 4
    for budget in (1, 4 * state, 10 * state, 18 * state):
        apart_SB = scored(folder, SUBSETS, tokens_BT1, kl=True, budget=budget)
        torch.testing.assert_close(apart_SB, together_SB, rtol=1e-5, atol=1e-6)
    assert group_sizes(26, 10, 1000) == (26, 3) and group_sizes(200, 10, 1000) == (98, 1)
    assert group_sizes(2, 10, 1) == (1, 1)


@pytest.mark.parametrize("score", ["loss", "kl"])
def test_bf16_mixed_computes_what_autocast_does(score, make_llama, tokens_BT1, tmp_path):
    _, folder = make_llama()
    found = search(folder, tmp_path / "out", n_min=4, precision="bf16-mixed", score=score)
    model, layers = load_reference(folder), tuple(found.found["4"].layers)
    mixed_B = score_alone(model, layers, tokens_BT1, score, bf16=True)
    assert found.found["4"].score == pytest.approx(mixed_B.mean().item(), rel=1e-6)
    assert found.found["4"].score != pytest.approx(
        score_alone(model, layers, tokens_BT1, score).mean().item(), rel=1e-5
    )


def test_each_layer_is_loaded_once_a_round(make_llama, tokens_BT1, tmp_path, monkeypatch):
    _, folder = make_llama(num_hidden_layers=6)
    loaded, load = [], LayerStream._load

    def count(self, module, prefix, **tied):
        loaded.append(prefix)
        return load(self, module, prefix, **tied)

    monkeypatch.setattr(LayerStream, "_load", count)
    found = search(folder, tmp_path / "out", n_min=3)
    kept = [found.whole, *found.found.values()][:3]
    rounds = [{layer for subset in without_one([tuple(each.layers)]) for layer in subset} for each in kept]
    others = [{layer for by_n in found.compared.values() for layer in by_n[n].layers} for n in found.found]
    for layer in range(6):
        needed = sum(layer in searched | compared for searched, compared in zip(rounds, others, strict=True))
        assert loaded.count(f"transformer.h.{layer}.") == 1 + needed  # and once by the whole model
    assert loaded.count("lm_head.") == 1


def test_ways_that_need_no_search():
    ways = unsearched(30, 15, [abs(layer - 20.2) for layer in range(30)])
    assert ways["first"] == tuple(range(15))
    assert ways["ends"] == (*range(12), 27, 28, 29)
    assert ways["alternate"] == tuple(range(0, 30, 2))
    assert ways["influence"] == (*range(13), 28, 29)
    assert unsearched(8, 1, range(8)) == {"first": (0,), "ends": (7,), "alternate": (0,), "influence": (7,)}
    assert without_one([(0, 1, 2), (1, 2, 3)]) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("beam", [1, 2])
def test_a_search_that_was_stopped_ends_with_the_same_bytes(beam, make_llama, tokens_BT1, tmp_path, monkeypatch):
    _, folder = make_llama(num_hidden_layers=6)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    search(folder, whole, n_min=2, beam=beam)
    for _ in range(3):  # after the first round, the second, the third
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("inheritune_lit.analysis.search.write_record", once_then_interrupt())
            search(folder, stopped, n_min=2, beam=beam)
    search(folder, stopped, n_min=2, beam=beam)
    assert {path.name for path in stopped.iterdir()} == {"search.json", "search.md", "search.png", "inheritune.json"}
    for name in ("search.json", "search.md", "search.png"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    # A smaller n_min goes on; what is there is not searched again.
    further = search(folder, whole, n_min=1, beam=beam)
    assert further.finished and further.n_min == 1 and list(further.compared["ends"]) == ["5", "4", "3", "2", "1"]
    before = (whole / "search.json").read_bytes()
    monkeypatch.setattr("inheritune_lit.analysis.search._search", None)
    assert search(folder, whole, n_min=3, beam=beam) == further
    assert (whole / "search.json").read_bytes() == before


def once_then_interrupt():
    from inheritune_lit.io.records import write_record

    calls = []

    def write(path, record):
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        write_record(path, record)

    return write


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer_dir) -> Path:
    """A model, packed data, and a search."""
    folder = tmp_path_factory.mktemp("world")
    make_checkpoint(folder / "model", tokenizer_dir, n_layer=4)
    make_checkpoint(folder / "twin", tokenizer_dir, seed=1, n_layer=4)
    make_checkpoint(folder / "deep", tokenizer_dir, n_layer=5)
    make_packed(folder / "data", tokenizer_dir)
    assert main(asked(folder, "searched").split()) == 0
    return folder


def asked(world: Path, out: str, more: str = "", ref: str = "model") -> str:
    size = "--num_sequences 4 --seq_length 16 --repair none"
    return f"search {world / ref} --data {world / 'data'} --out_dir {world / out} {size} {more}"


def test_a_slice_of_what_was_found(world, tmp_path):
    found, out = load_search(world / "searched"), tmp_path / "slice"
    assert (
        main(["slice", str(world / "model"), "--search", str(world / "searched"), "--n", "2", "--out_dir", str(out)])
        == 0
    )
    manifest, layers = read_manifest(out), found.found["2"].layers
    assert manifest["layers"] == layers
    assert manifest["search"] == {
        "folder": str(world / "searched"),
        "sha256": sha256_file(world / "searched" / "search.json"),
        "settings": json.loads((world / "searched" / "search.json").read_text())["settings"],
    }
    assert manifest["search"]["settings"]["data_sha256"] == content_sha256(world / "data")
    tokens_BT1 = draw_sequences(world / "data", world / "model", 400, 4, 16, 1337, "train")
    with torch.no_grad():
        loss = losses_of(load_model(out)(tokens_BT1[:, :-1]), tokens_BT1).mean().item()
    assert found.found["2"].score == pytest.approx(loss, rel=1e-5)
    by_hand = slice_model(SliceArgs(str(world / "model"), layers=",".join(map(str, layers)), out_dir=tmp_path / "hand"))
    assert (by_hand.folder / "lit_model.pth").read_bytes() == (out / "lit_model.pth").read_bytes()


def test_the_search_sees_training_samples_only(world):
    dataset = PackedDataset(world / "data", "train", 16)
    there = {tuple(sample) for sample in dataset.batch(range(len(dataset)))}
    tokens_BT1 = draw_sequences(world / "data", world / "model", 400, 4, 16, 1337, "train")
    assert {tuple(sample) for sample in tokens_BT1.numpy()} <= there


def test_what_is_written_and_printed(world, capsys):
    found = load_search(world / "searched")
    assert main(asked(world, "searched").split()) == 0
    printed, logged = capsys.readouterr()
    page = (world / "searched" / "search.md").read_text()
    assert logged == "" and f"wrote {world / 'searched'}/search.json, search.md, search.png" in printed
    for text in (printed, page):
        assert "| n | search | first | ends | alternate | influence | layers of the search |" in text
        assert f"| {found.found['3'].score:.3f} ± " in text
    removed = [
        *(set(range(4)) - set(found.found["3"].layers)),
        *({*found.found["3"].layers} - {*found.found["2"].layers}),
    ]
    assert f"Removed, one after the other: -{removed[0]}, -{removed[1]}, " in page
    manifest = read_manifest(world / "searched")
    assert manifest["kind"] == "search" and manifest["settings"]["precision"] == "32-true"
    assert manifest["reference"]["files"] == {"lit_model.pth": sha256_file(world / "model" / "lit_model.pth")}
    assert main(asked(world, "none", "--dry_run").split()) == 0
    # Prefixes of the whole model 4, of the rounds' subsets 9, 5 and 2, of those that are compared 7, 6 and 2.
    printed = capsys.readouterr().out
    assert "by loss in 32-true" in printed and "in 35 layer runs" in printed
    # After repair the whole model runs beside the others in each of three rounds; it is what is done when not asked.
    assert main(asked(world, "none", "--dry_run").replace("--repair none", "").split()) == 0
    printed = capsys.readouterr().out
    assert "by loss after repair" in printed and "in 47 layer runs" in printed
    assert not (world / "none").exists()


def refused(capsys, line: str) -> str:
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.strip().splitlines()[-1]


def test_bad_input_of_a_search(world, tmp_path, capsys):
    cases = {
        "--n_min 4": "--n_min 4 leaves nothing to remove of 4 layers; give 1 to 3",
        "--n_min 0": "--n_min is 0; give 1 or more",
        "--beam 0": "--beam is 0; give 1 or more",
        "--seq_length 64": "--seq_length 64 is more than the context of tiny, 32 tokens",
        "--num_sequences 1 --repair linear": "a repair is fitted on half of the sequences; give 2 or more",
        "--num_sequences 100000": "--num_sequences asks for 100000",
    }
    for more, told in cases.items():
        assert told in refused(capsys, asked(world, "none", more))
    assert "was started with seed 1337, not 2" in refused(capsys, asked(world, "searched", "--seed 2"))
    assert "was started with beam 1, not 2" in refused(capsys, asked(world, "searched", "--beam 2"))
    told = refused(capsys, asked(world, "searched", ref="twin"))
    assert "is a search of a reference with files.lit_model.pth" in told
    assert "not a search" in refused(capsys, asked(world, "data"))
    manifest = json.loads((world / "data" / "inheritune.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inheritune.json").write_text(json.dumps(manifest))
    told = refused(capsys, asked(world, "none").replace(str(world / "data"), str(tmp_path / "data")))
    assert "another tokenizer" in told
    assert not (world / "none").exists()


def test_bad_input_of_a_slice(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    searched, unfinished = world / "searched", tmp_path / "unfinished"
    unfinished.mkdir()
    content = json.loads((searched / "search.json").read_text())
    (unfinished / "search.json").write_text(json.dumps(content | {"n_min": 0}))
    cases = {
        f"model --search {searched} --n 4": "--n 4 is not one of the 1 to 3 layers",
        f"model --search {searched}": "no --n is given; give --n beside it",
        f"model --search {searched} --n 2 --layers first:2": "--layers first:2 is given",
        f"model --search {searched} --n 2 --init stack": "--init stack repeats layers",
        f"model --search {world} --n 2": "search.json can't be read as",
        f"model --search {unfinished} --n 2": "is not finished: down to 1 of 0 layers",
        f"deep --search {searched} --n 2": "is a search of tiny, whose n_layer is 4, not 5",
        f"twin --search {searched} --n 2": "is a search of tiny from",
    }
    for line, told in cases.items():
        assert told in refused(capsys, f"slice {world}/{line} --out_dir out"), line
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]
