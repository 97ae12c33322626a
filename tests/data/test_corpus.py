"""Which files make a corpus: what is read, what is left out by name, and that no text comes twice or half."""

import bz2
import gzip
import json
import lzma
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from megatron_pair import parse_pair
from random_text import make_documents

from inheritune_lit.data import shards, sources
from inheritune_lit.data.args import PrepareArgs, ReadingArgs
from inheritune_lit.data.formats import ReadReport, read_rows
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.prepare import prepare
from inheritune_lit.data.sources import check_distinct, find_sources
from inheritune_lit.errors import UserError

TEXTS = [
    *make_documents(60, 11),
    "a\r\nb",
    "nul\0inside",
    "sep\u2028inside",
    "emoji \U0001f600",
    "tab\tand \x1b[1mbold",
]
ROWS = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row, ensure_ascii=row["n"] % 2 == 0) + "\n" for row in ROWS).encode()
COMPRESSED = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".zstd": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
ARRAYS = {
    "compact": json.dumps(ROWS),
    "pretty": json.dumps(ROWS, indent=2),
    "bom": "\ufeff \n" + json.dumps(ROWS, ensure_ascii=False),
    "crlf": "[\r\n" + ",\r\n".join(map(json.dumps, ROWS)) + "\r\n]\r\n",
}


def rows_of(path, **options) -> tuple[list[str], ReadReport]:
    report = ReadReport()
    return [text for text, _ in read_rows(path, ReadingArgs(**options), report)], report


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "A.JSONL", "A.Txt"])
def test_every_ending_in_any_case(tmp_path, name, ending):
    path = tmp_path / (name + (ending if name.islower() else ending.upper()))
    plain = name.lower().endswith(".txt")
    content = "\n".join(make_documents(5, 12)).encode() if plain else LINES
    half = len(content) // 2
    path.write_bytes(COMPRESSED[ending](content[:half]) + COMPRESSED[ending](content[half:]))
    texts, report = rows_of(path)
    assert texts == ([content.decode()] if plain else TEXTS)
    assert report.bytes_read == path.stat().st_size
    assert [file.domain for file in find_sources(tmp_path)] == [name[0]]


@pytest.mark.parametrize("form", ARRAYS)
@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_arrays_of_json(tmp_path, form, ending, monkeypatch):
    path = tmp_path / f"a.json{ending}"
    path.write_bytes(COMPRESSED[ending](ARRAYS[form].encode()))
    assert rows_of(path)[0] == TEXTS
    monkeypatch.setattr(shards, "_RANGE_BYTES", 1000)  # as if it were too large for one worker
    parts = [part for shard in shards.plan_shards(find_sources(tmp_path), ReadingArgs()) for part in shard.ranges]
    found = [text for p in parts for text, _ in read_rows(path, ReadingArgs(), ReadReport(), p.start, p.stop)]
    assert found == TEXTS


def test_an_empty_array_and_rows_that_are_lists(tmp_path):
    (tmp_path / "a.json").write_text(" [ ] ")
    assert rows_of(tmp_path / "a.json") == ([], ReadReport(bytes_read=5))
    (tmp_path / "b.jsonl").write_text('["x"]\n{"text": "y"}\n')
    texts, report = rows_of(tmp_path / "b.jsonl")
    assert (texts, report.broken_rows) == (["y"], 1)


@pytest.mark.parametrize("content", ["[{", '[{"text": "a"}', '[{"text": "a"},', '[{"text": "a"} {"text": "b"}]', "[{]"])
def test_a_damaged_array_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json.*(cut short|not JSON)"):
        rows_of(tmp_path / "a.json")


def test_what_is_left_out_is_counted_by_ending(tmp_path, logged):
    for name in ("a.csv", "b.csv", "x.tar", "x.jsonl.lz4", "LICENSE", ".hidden.jsonl", ".git/x.jsonl", "deep/z.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.mkfifo(tmp_path / "p.jsonl")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert [file.name for file in find_sources(tmp_path)] == ["a.jsonl"]
    for told in (
        "2 *.csv (a.csv)",
        "1 *.tar",
        "1 *.lz4",
        "1 without an ending (LICENSE)",
        "2 hidden",
        "1 *.md",
        "1 pipes",
    ):
        assert told in logged.messages[-1]


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz"])
def test_a_file_beside_its_compressed_form_is_refused(tmp_path, tokenizer_dir, ending):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_bytes(LINES)
    (corpus / f"a.jsonl{ending}").write_bytes(COMPRESSED[ending](LINES))
    args = {"val_fraction": 0.2, "num_workers": 1}
    with pytest.raises(UserError, match=r"has the name of .*a\.jsonl.*packed twice; .*--drop_duplicates"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", **args))
    result = prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", **args, drop_duplicates=True))
    assert result.domains["a"].train.documents + result.domains["a"].val.documents == len(TEXTS)


@pytest.mark.parametrize("link", [os.symlink, os.link, shutil.copyfile])
def test_one_file_under_two_names_is_refused(tmp_path, tokenizer_dir, link):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_bytes(LINES)
    link(corpus / "a.jsonl", corpus / "b.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl (is the same file as|holds the same as) .*a\.jsonl"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", domain="all"))
    assert os.listdir(tmp_path) == ["corpus"]


def test_of_files_of_one_size_only_the_ends_are_read(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name * 5_000_000}) + "\n")
    monkeypatch.setattr(sources, "sha256_file", lambda path: pytest.fail(f"{path} is read whole"))
    check_distinct(find_sources(tmp_path), {})


def test_copies_in_two_domains_are_told(tmp_path, tokenizer_dir, logged):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, ending in {"a": "", "b": "", "c": ".bz2"}.items():
        (corpus / f"{name}.jsonl{ending}").write_bytes(COMPRESSED[ending](LINES))
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1))
    assert "b.jsonl holds the same as" in logged.text
    assert "c.jsonl.bz2 has the same texts as" in logged.text


@pytest.mark.parametrize(
    "content",
    [
        "plain words".encode("utf-16-le"),
        "слова по-русски".encode("utf-16-be"),
        "wide".encode("utf-32-le"),
        bytes(1000),
        b"ELF\0\1\2" + bytes(range(32)),
        "plain words".encode("utf-16"),
    ],
)
def test_what_is_no_text_is_not_packed(tmp_path, content):
    for name, given in {"a.txt": content, "b.txt.gz": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(given)
        texts, report = rows_of(tmp_path / name)
        assert (texts, report.broken_rows) == ([], 1)
    assert not rows_of(tmp_path / "a.txt", txt_documents="line")[0]
    row = json.dumps({"text": content.decode("latin-1")}).encode()
    (tmp_path / "c.jsonl").write_bytes(row + b"\n" + LINES)
    if b"\xff" not in content:  # in which a row is strange, not binary
        assert rows_of(tmp_path / "c.jsonl")[0] == TEXTS


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_column(tmp_path, kind):
    array = pa.array(TEXTS).cast(kind) if not pa.types.is_dictionary(kind) else pa.array(TEXTS).dictionary_encode()
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet", row_group_size=7)
    assert rows_of(tmp_path / "a.parquet")[0] == TEXTS


def test_the_limit_counts_bytes_in_every_format(tmp_path):
    texts = ["é" * 60, "e" * 60]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False))
    (tmp_path / "c.txt").write_text("\n".join(texts))
    for name in ("a.parquet", "b.json", "c.txt"):
        found, report = rows_of(tmp_path / name, max_document_bytes=100, txt_documents="line")
        assert (found, report.long_rows) == (texts[1:], 1)


def test_domains_of_rows_need_no_open_files(tmp_path, tokenizer_dir, monkeypatch):
    count = 300
    resource = pytest.importorskip("resource")
    texts = make_documents(4 * count, 5)
    rows = [{"text": text, "set": f"d{n % count}"} for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(shards, "_HELD_BYTES", 10_000)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 280, before[1]))
    try:
        args = PrepareArgs(tmp_path / "a.jsonl", tokenizer_dir, tmp_path / "out", domain_field="set", num_workers=1)
        result = prepare(args)
        dataset = PackedDataset(tmp_path / "out", "train", 16)
        samples = dataset.batch(range(len(dataset)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(result.domains) == count
    packed = [np.concatenate(parse_pair(tmp_path / "out/train" / name)) for name in sorted(result.domains)]
    cut = [ids[start : start + 17] for ids in packed for start in range(0, len(ids) - 16, 16)]
    assert np.array_equal(samples, np.stack(cut))


def test_too_many_domains_of_rows_are_refused(tmp_path, tokenizer_dir, monkeypatch):
    monkeypatch.setattr(shards, "_MAX_DOMAINS", 5)
    rows = [{"text": text, "url": f"d{n}"} for n, text in enumerate(make_documents(100, 6))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="--domain_field url names more than 5 domains"):
        prepare(PrepareArgs(tmp_path / "a.jsonl", tokenizer_dir, tmp_path / "out", domain_field="url", num_workers=1))


def test_tokens_that_fill_no_sample_are_told(tmp_path, tokenizer_dir):
    for n, text in enumerate(make_documents(40, 8)):
        (tmp_path / "books").mkdir(exist_ok=True)
        (tmp_path / "books" / f"b{n}.txt").write_text(text)
    prepare(PrepareArgs(tmp_path / "books", tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    dataset = PackedDataset(tmp_path / "out", "train", 128)
    lengths = [sum(map(len, parse_pair(path.with_suffix("")))) for path in (tmp_path / "out/train").glob("*.idx")]
    left = sum((length - 1) % 128 for length in lengths)
    assert f"{left:,} tokens ({left / sum(lengths):.1%}) do not fill a sample" in dataset.left_over
    assert "--domain" in dataset.left_over
    assert PackedDataset(tmp_path / "out", "train", 128, "separate").left_over is None
    with pytest.raises(UserError, match=r"too few for one sample of \d+ in any of its \d+ domains.*--domain"):
        PackedDataset(tmp_path / "out", "train", max(lengths))
