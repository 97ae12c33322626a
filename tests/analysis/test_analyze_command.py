"""``inheritune analyze`` as a user meets it: text and packed data in, a folder or one clear line out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_checkpoint, make_packed

from inheritune_lit.analysis.result import load_analysis
from inheritune_lit.analysis.sequences import draw_sequences
from inheritune_lit.cli import main
from inheritune_lit.data.megatron import open_documents
from inheritune_lit.errors import UserError
from inheritune_lit.io.records import write_record
from inheritune_lit.tokenizer import Tokenizer

QUICK = ["--num_sequences", "4", "--seq_length", "16", "--drop_sequences", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer_dir) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    make_checkpoint(folder, tokenizer_dir)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Ten documents of words, different ones each."""
    folder = tmp_path_factory.mktemp("corpus")
    words = ["the", "model", "reads", "text", "and", "a", "tree", "sees", "every", "cat"]
    draw = np.random.default_rng(0)
    rows = [json.dumps({"text": f"{number} " + " ".join(draw.choice(words, 60))}) for number in range(10)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def run(capsys, *args: str, plan_lines: int = 0) -> str:
    """The one line of an error, behind those of the plan where the measuring had begun."""
    assert main(["analyze", *args]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == plan_lines + 1 and lines[-1].startswith("inheritune: error: ")
    return lines[-1]


def test_the_command_writes_what_it_measured(checkpoint, text, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(["analyze", "--checkpoint_dir", str(checkpoint), "--data", str(text), "--out_dir", str(out), *QUICK]) == 0
    )
    printed, logged = capsys.readouterr()
    assert "2 layers of 4 heads, width 32" in logged and "TFLOP" in logged and "T=16, tau=0.9, protocol v4" in printed
    names = {path.name for path in out.iterdir()}
    assert {name for name in names if not name.endswith((".png", ".md"))} == {"analysis.json", "inheritune.json"}
    analysis = load_analysis(out)
    assert analysis.model.n_layer == 2 and analysis.settings["num_sequences"] == 4
    assert np.shape(analysis.heads["attention_rank"].mean) == (2, 4)
    assert set(analysis.layers) >= {"block_influence", "logit_lens_loss", "drop_loss"}
    measured = {*analysis.heads, *analysis.layers, *vars(analysis.protocols.v4)}
    assert measured == set(analysis.measures)
    assert analysis.maps.kind == "full" and np.shape(analysis.maps.attention[0].weights) == (16, 16)


def test_a_dry_run_prints_the_cost_and_writes_nothing(checkpoint, text, tmp_path, capsys):
    args = ["--ref", str(checkpoint), "--data", str(text), "--out_dir", str(tmp_path / "out"), *QUICK, "--dry_run"]
    assert main(["analyze", *args]) == 0
    # Each layer, and each without the other.
    assert "4 layer runs" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_packed_data_gives_blocks_of_its_validation_part(checkpoint, tokenizer_dir, tmp_path):
    packed = make_packed(tmp_path / "packed", tokenizer_dir)
    tokens_BT1 = draw_sequences(packed, checkpoint, 400, 5, 16, seed=0)
    stored, _ = open_documents(next((packed / "val").glob("*.bin")).with_suffix(""))
    stored = np.asarray(stored).tolist()
    blocks = [stored[start : start + 17] for start in range(0, len(stored) - 16, 16)]
    assert all(row in blocks for row in tokens_BT1.tolist()) and len(set(map(tuple, tokens_BT1.tolist()))) == 5
    assert not torch.equal(tokens_BT1, draw_sequences(packed, checkpoint, 400, 5, 16, seed=1))
    assert torch.equal(tokens_BT1, draw_sequences(packed, checkpoint, 400, 5, 16, seed=0))


def test_text_gives_a_sequence_of_each_document_first(checkpoint, text):
    tokenizer = Tokenizer(checkpoint)
    documents = [json.loads(line)["text"] for line in (text / "rows.jsonl").read_text().splitlines()]
    encoded = [tokenizer.encode(document) for document in documents]

    def sources(tokens_BT1: torch.Tensor) -> list[int]:
        found = []
        for row in tokens_BT1.tolist():
            at = [n for n, ids in enumerate(encoded) if any(ids[i : i + len(row)] == row for i in range(len(ids)))]
            found += at
        return found

    assert sorted(sources(draw_sequences(text, checkpoint, 400, 10, 16, seed=0))) == list(range(10))
    more = draw_sequences(text, checkpoint, 400, 25, 16, seed=0)
    assert set(sources(more)) == set(range(10)) and len(set(map(tuple, more.tolist()))) == 25


def test_sequences_of_real_text_are_parts_of_its_documents(inheritune_data):
    tokenizer_dir = inheritune_data / "tokenizers" / "llama2"
    tokens_BT1 = draw_sequences(inheritune_data / "redpajama-sample", tokenizer_dir, 32000, 20, 100, seed=0)
    assert tokens_BT1.shape == (20, 101)
    documents = [
        json.loads(line)["text"]
        for path in (inheritune_data / "redpajama-sample").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    tokenizer = Tokenizer(tokenizer_dir)
    for row in tokens_BT1.tolist():
        # The ends may be bytes of a character.
        middle = tokenizer.decode(row[4:-4]).strip("\ufffd ")
        assert any(middle in document for document in documents)


def test_bad_input_is_one_clear_line(checkpoint, text, tmp_path, capsys):
    out = tmp_path / "out"
    base = ["--checkpoint_dir", str(checkpoint), "--out_dir", str(out)]
    data = ["--data", str(text)]
    short = tmp_path / "short.txt"
    short.write_text("a cat sees")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a cat"}\nno json\n')
    cases = [
        (["--out_dir", str(out), *data], "--ref is missing"),
        (["--checkpoint_dir", "nowhere", "--out_dir", str(out), *data], "unknown reference 'nowhere'"),
        (["--ref", "nonsense", "--out_dir", str(out), *data], "unknown reference 'nonsense'"),
        ([*base, *data, "--tau", "0"], "--tau is 0.0"),
        ([*base, *data, "--tau", "1.5"], "--tau is 1.5"),
        ([*base, *data, "--seq_length", "33"], "more than the context of tiny, 32 tokens"),
        ([*base, *data, "--seq_length", "1"], "--seq_length is 1; give 2 or more"),
        ([*base, *data, "--num_sequences", "0"], "--num_sequences is 0"),
        ([*base, "--data", str(short), *QUICK], "sequences shorter than --seq_length 16"),
        ([*base, "--data", str(empty), *QUICK], "holds no text"),
        ([*base, "--data", str(broken), *QUICK], "1 of 2 rows"),
        ([*base, "--data", "nothing", *QUICK], "no corpus at nothing"),
        ([*base, *data, "--num_sequences", "5000", "--seq_length", "16"], "too little text"),
        ([*base, *data, *QUICK, "--map_layers", "2"], "names layer 2"),
        ([*base, *data, *QUICK, "--map_heads", "4"], "--map_heads names head 4"),
    ]
    for args, words in cases:
        assert words in run(capsys, *args), args
    assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    assert "already holds files" in run(capsys, *base, *data, *QUICK)


def test_packed_data_of_another_tokenizer_or_too_short_is_refused(checkpoint, tokenizer_dir, tmp_path, capsys):
    packed = make_packed(tmp_path / "packed", tokenizer_dir)
    base = ["--checkpoint_dir", str(checkpoint), "--out_dir", str(tmp_path / "out"), "--data", str(packed)]
    capsys.readouterr()
    assert "too little text" in run(capsys, *base, "--num_sequences", "100000", "--seq_length", "16")
    manifest = json.loads((packed / "inheritune.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (packed / "inheritune.json").write_text(json.dumps(manifest))
    assert "another tokenizer" in run(capsys, *base, *QUICK)


def test_nan_in_the_attention_names_the_layer_and_leaves_nothing(tmp_path, tokenizer_dir, text, capsys):
    model = make_checkpoint(tmp_path / "model", tokenizer_dir)
    with torch.no_grad():
        model.transformer.h[1].attn.qkv.weight[0, 0] = torch.nan
    torch.save(model.state_dict(), tmp_path / "model" / "lit_model.pth")
    args = [
        "--checkpoint_dir",
        str(tmp_path / "model"),
        "--data",
        str(text),
        "--out_dir",
        str(tmp_path / "out"),
        *QUICK,
    ]
    assert "the attention of layer 1 holds NaN" in run(capsys, *args, plan_lines=3)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_results_are_strict_json_and_damaged_ones_are_refused(checkpoint, text, tmp_path):
    out = tmp_path / "out"
    args = ["--checkpoint_dir", str(checkpoint), "--data", str(text), "--out_dir", str(out), "--num_sequences", "1"]
    assert main(["analyze", *args, "--seq_length", "2", "--maps", "none"]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((out / "analysis.json").read_text(), parse_constant=refuse)
    analysis = load_analysis(out / "analysis.json")
    write_record(out / "again.json", analysis)
    assert (out / "again.json").read_text() == (out / "analysis.json").read_text()
    (out / "broken.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="isn't the result of an analysis"):
        load_analysis(out / "broken.json")
    with pytest.raises(UserError, match="can't be read"):
        load_analysis(out / "absent.json")
