"""Text in, packed tokens out: what is packed decodes back to the text, and bad corpora are one clear line."""

import json
import re
import subprocess
import sys

import pytest
import sentencepiece
from megatron_pair import parse_pair
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from inheritune_lit.cli import main
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.formats import is_validation
from inheritune_lit.data.prepare import prepare
from inheritune_lit.errors import UserError


def test_packed_documents_decode_to_the_texts(corpus, documents, tokenizer_dir, tmp_path):
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
    manifest = json.loads((tmp_path / "out" / "inheritune.json").read_text())
    assert manifest["dtype"] == "uint16"
    for domain, texts in documents.items():
        split = {name: parse_pair(tmp_path / "out" / name / domain) for name in ("train", "val")}
        for name, packed in split.items():
            assert all(ids[-1] == judge.eos_id() for ids in packed)
            counted = manifest["domains"][domain][name]
            assert counted == {"documents": len(packed), "tokens": sum(map(len, packed))}
            wanted = [text for text in texts if is_validation(text, 0.2) == (name == "val")]
            assert [judge.decode(ids[:-1]) for ids in packed] == wanted
        assert len(split["train"]) + len(split["val"]) == len(texts)
        assert split["train"] and split["val"]


def test_real_text_decodes_back(inheritune_data, tmp_path):
    tokenizer_dir = inheritune_data / "tokenizers" / "llama2"
    source = inheritune_data / "redpajama-sample" / "c4_sample.jsonl"
    prepare(PrepareArgs(source, tokenizer_dir, tmp_path / "out", val_fraction=0.05))
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    packed = {name: parse_pair(tmp_path / "out" / name / "c4") for name in ("train", "val")}
    for name in packed:
        wanted = [text for text in texts if is_validation(text, 0.05) == (name == "val")]
        assert packed[name] == [[*judge.encode(text), judge.eos_id()] for text in wanted]


def test_the_papers_code_has_no_end_of_document(corpus, documents, tokenizer_dir, tmp_path):
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, end_of_document=False))
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
    wanted = [text for text in documents["c4"] if not is_validation(text, 0.2)]
    assert parse_pair(tmp_path / "out" / "train" / "c4") == judge.encode(wanted)


@pytest.mark.parametrize("parsed", [False, True])
def test_text_cannot_spell_control_tokens_unless_asked_to(tmp_path, parsed):
    """GPT-2's tokenizers parse ``<|endoftext|>`` in a text, so a web page could end documents."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([], trainer)
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    rows = "".join(json.dumps({"text": f"{n} <|endoftext|> more"}) + "\n" for n in range(50))
    (tmp_path / "all.jsonl").write_text(rows)
    options = {"val_fraction": 0.2, "parse_special_tokens": parsed}
    prepare(PrepareArgs(tmp_path / "all.jsonl", tmp_path / "tokenizer", tmp_path / "out", **options))
    for ids in parse_pair(tmp_path / "out" / "train" / "all"):
        assert ids.count(0) == 1 + parsed
        assert ids[-1] == 0
        assert tokenizer.decode(ids, skip_special_tokens=False).endswith(" <|endoftext|> more<|endoftext|>")


def words_tokenizer(folder, words: list[str], eos_id: int):
    """A folder with a tokenizer that knows some words and drops "unknown"; ids count from 0."""
    folder.mkdir()
    tokenizer = FastTokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=""))
    tokenizer.normalizer = normalizers.Replace("unknown", "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_id}))
    return folder


def test_a_vocabulary_beyond_uint16_is_int32(tmp_path):
    tokenizer_dir = words_tokenizer(tmp_path / "tokenizer", [f"w{n}" for n in range(70_000)], eos_id=2)
    rows = [{"text": f"w{n} w69999"} for n in range(100)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(PrepareArgs(tmp_path / "all.jsonl", tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    packed = parse_pair(tmp_path / "out" / "train" / "all") + parse_pair(tmp_path / "out" / "val" / "all")
    assert sorted(packed) == [[n, 69_999, 2] for n in range(100)]
    manifest = json.loads((tmp_path / "out" / "inheritune.json").read_text())
    assert (manifest["dtype"], manifest["max_token_id"]) == ("int32", 69_999)


def test_an_end_that_the_vocabulary_lacks(corpus, tmp_path):
    tokenizer_dir = words_tokenizer(tmp_path / "tokenizer", ["the", "model"], eos_id=100_000)
    with pytest.raises(UserError, match=r"the EOS id of .* is 100000, tokenizer\.json has only 2 ids"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_split_depends_on_the_text_alone():
    texts = [f"text {number}" for number in range(4000)]
    chosen = {text for text in texts if is_validation(text, 0.1)}
    assert 320 < len(chosen) < 480  # 400 ± 4 standard deviations
    assert chosen < {text for text in texts if is_validation(text, 0.2)}


def test_faulty_rows_are_counted_and_named(corpus, tokenizer_dir, tmp_path, logged):
    with (corpus / "c4_sample.jsonl").open("ab") as file:
        file.write(b'\n{"text": "   "}\n{"text": "caf\xe9"}\n')
    result = prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    record = json.loads((tmp_path / "out" / "inheritune.json").read_text())["domains"]["c4"]
    assert (record["rows"], record["empty_rows"], record["broken_rows"]) == (162, 1, 1)
    assert "c4_sample.jsonl:163: not UTF-8" in logged.text
    heading, rows = str(result).splitlines()[0], str(result).splitlines()[1:3]
    assert heading.split()[-4:] == ["empty", "rows", "broken", "rows"]
    assert [row.split()[-2:] for row in rows] == [["0", "0"], ["1", "1"]]


def test_a_text_without_tokens_counts_as_empty(tmp_path):
    tokenizer_dir = words_tokenizer(tmp_path / "tokenizer", ["the", "model"], eos_id=0)
    rows = [{"text": "the model " * n} for n in range(1, 41)] + [{"text": "unknown"}]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(PrepareArgs(tmp_path / "all.jsonl", tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    record = json.loads((tmp_path / "out" / "inheritune.json").read_text())["domains"]["all"]
    assert record["empty_rows"] == 1
    assert record["train"]["documents"] + record["val"]["documents"] == 40


def test_a_domain_missing_from_a_split_is_named(corpus, tokenizer_dir, tmp_path, logged):
    (corpus / "bare.jsonl").write_text("")
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    warnings = [line for line in logged.messages if "warning" in line]
    assert warnings == [f"inheritune: warning: no {name} document in bare" for name in ("train", "val")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'{"content": "x"}', 'no string field "text"'),
        (b'{"text": "\\ud800"}', "not UTF-8"),
        (b"[1]", 'no string field "text"'),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_many_broken_rows_stop(corpus, tokenizer_dir, tmp_path, row, told):
    (corpus / "c4_sample.jsonl").write_bytes(b'{"text": "fine"}\n' * 50 + (row + b"\n") * 2)
    with pytest.raises(UserError, match=f"2 of 52 rows.*c4_sample.jsonl:51: {told}"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "arguments", "told"),
    [
        (lambda corpus: None, {"--source": "nowhere"}, "no corpus at nowhere"),
        (lambda corpus: None, {"--tokenizer_dir": "nowhere"}, "no tokenizer in nowhere"),
        (lambda corpus: None, {"--val_fraction": "1.5"}, "--val_fraction is 1.5"),
        (lambda corpus: [file.unlink() for file in corpus.iterdir()], {}, "no .jsonl, .*file in .*corpus"),
        (lambda corpus: [file.write_text("") for file in corpus.iterdir()], {}, "no document .*0 rows"),
        (
            lambda corpus: [file.write_text('{"text": " "}\n') for file in corpus.iterdir()],
            {},
            "no document",
        ),
        (lambda corpus: (corpus / "c 4.jsonl").write_text("{}"), {}, "names the domain 'c 4'"),
        (lambda corpus: (corpus / "_sample.jsonl").write_text("{}"), {}, "_sample.jsonl names no domain"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(corpus, tokenizer_dir, tmp_path, capsys, spoil, arguments, told):
    spoil(corpus)
    given = {"--source": corpus, "--tokenizer_dir": tokenizer_dir, "--out_dir": tmp_path / "out", **arguments}
    assert main(["prepare", *(str(word) for pair in given.items() for word in pair)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("inheritune: error: ")
    assert re.search(told, error)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_occupied_output_is_refused_and_kept(corpus, tokenizer_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(UserError, match="already holds files"):
        prepare(PrepareArgs(corpus, tokenizer_dir, out))
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_tokenizer_without_eos(corpus, tmp_path):
    tokenizer_dir = words_tokenizer(tmp_path / "tokenizer", ["the", "model"], eos_id=0)
    (tokenizer_dir / "generation_config.json").unlink()
    with pytest.raises(UserError, match="no EOS token"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out"))
    with pytest.raises(UserError, match=r"tokenizer\.json cannot encode a text"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", end_of_document=False))


def test_dry_run_writes_nothing(corpus, tokenizer_dir, tmp_path, logged):
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", dry_run=True))
    assert "2 domains (book, c4)" in logged.text
    assert not list(tmp_path.glob("*out*"))


def test_the_wrong_field_stops_early(tokenizer_dir, tmp_path, monkeypatch):
    """After the first part, not after a terabyte."""
    monkeypatch.setattr("inheritune_lit.data.shards._RANGE_BYTES", 100_000)
    (tmp_path / "all.jsonl").write_text('{"content": "some text or other"}\n' * 60_000)
    with pytest.raises(UserError, match=r"2942 of 2942 rows of .*all.jsonl:1: no string field \"text\""):
        prepare(PrepareArgs(tmp_path / "all.jsonl", tokenizer_dir, tmp_path / "out", num_workers=1))


def test_a_broken_row_far_into_a_file_is_named_by_its_line(corpus, tokenizer_dir, tmp_path, monkeypatch, logged):
    monkeypatch.setattr("inheritune_lit.data.shards._RANGE_BYTES", 5_000)
    lines = (corpus / "c4_sample.jsonl").read_text().splitlines(keepends=True)
    (corpus / "c4_sample.jsonl").write_text("".join([*lines[:100], "{\n", *lines[100:]]))
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1))
    assert "1 of 161 rows of" in (error := logged.text)
    assert "c4_sample.jsonl:101: not JSON" in error


def test_text_without_a_place_to_cut_is_left_out_and_counted(corpus, tokenizer_dir, tmp_path, monkeypatch, logged):
    monkeypatch.setattr("inheritune_lit.data.encoding.WordCache.max_unbroken", 10_000)
    with (corpus / "c4_sample.jsonl").open("a") as file:
        file.write(json.dumps({"text": "A" * 10_001}) + "\n" + json.dumps({"text": "A " * 10_001}) + "\n")
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    record = json.loads((tmp_path / "out" / "inheritune.json").read_text())["domains"]["c4"]
    assert (record["rows"], record["long_rows"]) == (162, 1)
    assert "1 of 162 rows of" in logged.text


@pytest.mark.slow
def test_a_line_of_100_mb_in_bounded_memory(tokenizer_dir, tmp_path):
    with (tmp_path / "all.jsonl").open("w") as file:
        file.write('{"text": "' + "the model learns " * 6_000_000 + '"}\n')
        file.writelines(json.dumps({"text": f"text {n}"}) + "\n" for n in range(100))
    code = (
        "import resource, sys; from inheritune_lit.cli import main; code = main(sys.argv[1:]); "
        "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = ["--source", tmp_path / "all.jsonl", "--tokenizer_dir", tokenizer_dir, "--out_dir", tmp_path / "out"]
    arguments += ["--val_fraction", 0.2, "--num_workers", 1]
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    code, kilobytes = map(int, done.stdout.splitlines()[-1].split())
    assert code == 0
    assert kilobytes < 1_200_000
    documents = parse_pair(tmp_path / "out" / "train" / "all") + parse_pair(tmp_path / "out" / "val" / "all")
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
    period = judge.encode("the model learns the")[: -len(judge.encode("the"))]
    assert max(documents, key=len)[: len(period) * 6_000_000] == period * 6_000_000
