"""Every format gives the same documents, whole or in parts, and damage is one clear line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from inheritune_lit.data import shards
from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.formats import ReadReport, read_rows
from inheritune_lit.data.shards import plan_shards
from inheritune_lit.data.sources import find_sources
from inheritune_lit.errors import UserError

TEXTS = [f"document {n}\nwith a second line, naïve ☕ {'word ' * (n % 50)}" for n in range(400)]
ROWS = [{"text": text, "meta": {"set": f"s{n % 3}"}} for n, text in enumerate(TEXTS)]
JSONL = "".join(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(ROWS)).encode()


def zstd_frames(data: bytes) -> bytes:
    """Two frames, as concatenated files have."""
    compress = zstandard.ZstdCompressor().compress
    return compress(data[:5000]) + compress(data[5000:])


def write(folder, name: str) -> None:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(JSONL[:5000]) + gzip.compress(JSONL[5000:]))
    elif name.endswith(".zst"):
        path.write_bytes(zstd_frames(JSONL))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=37)
    else:
        path.write_bytes(JSONL)


def read_all(folder, options=ReadingArgs()) -> tuple[list[tuple[str, str | None]], ReadReport]:
    """Rows of all ranges of a corpus, in order, and the sum of their reports."""
    rows, total = [], ReadReport()
    for shard in plan_shards(find_sources(str(folder), options), options):
        for part in shard.ranges:
            report = ReadReport()
            rows += read_rows(folder / part.source.name, options, report, part.start, part.stop)
            total.add(report)
    return rows, total


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("part_bytes", [1 << 25, 3000])
def test_every_format_gives_every_row_once(tmp_path, monkeypatch, name, part_bytes):
    monkeypatch.setattr(shards, "_RANGE_BYTES", part_bytes)
    monkeypatch.setattr(shards, "_BUNDLE_BYTES", 0)
    write(tmp_path, name)
    options = ReadingArgs(domain_field="meta.set")
    rows, report = read_all(tmp_path, options)
    assert rows == [(text, f"s{n % 3}") for n, text in enumerate(TEXTS)]
    assert (report.rows, report.broken_rows, report.long_rows) == (400, 0, 0)
    whole = len(plan_shards(find_sources(str(tmp_path), options), options)) == 1
    assert whole == (part_bytes == 1 << 25 or name.endswith(("gz", "zst")))


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_lines_are_read_once_wherever_the_cut_is(tmp_path, monkeypatch, ending):
    lines = [b'{"text": "one"}', b"", b'{"text": "two and more"}', b'{"text": "3"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + ending)
    for cut in range(1, (tmp_path / "a.jsonl").stat().st_size + 2):
        monkeypatch.setattr(shards, "_RANGE_BYTES", cut)
        assert [text for text, _ in read_all(tmp_path)[0]] == ["one", "two and more", "3"]


def test_text_files_are_documents_or_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\nsecond\r\n\nthird")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"fourth\n"))
    assert read_all(tmp_path)[0] == [("first\nsecond\r\n\nthird", None), ("fourth\n", None)]
    lines, report = read_all(tmp_path, ReadingArgs(txt_documents="line"))
    assert lines == [("first", None), ("second", None), ("third", None), ("fourth", None)]
    assert report.rows == 4


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + JSONL)
    assert [text for text, _ in read_all(tmp_path)[0]] == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_rows_over_the_limit_are_counted(tmp_path, name):
    write(tmp_path, name)
    limit = 200
    rows, report = read_all(tmp_path, ReadingArgs(max_document_bytes=limit))
    lines = JSONL.splitlines()
    if name == "a.parquet":
        kept = [text for text in TEXTS if len(text.encode()) <= limit]
    else:
        kept = [text for text, line in zip(TEXTS, lines, strict=True) if len(line) + 1 <= limit]
    assert 0 < len(kept) < 400
    assert [text for text, _ in rows] == kept
    assert (report.rows, report.long_rows) == (400, 400 - len(kept))


def test_broken_rows_are_placed(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n\n' * 2 + b'{"text": "caf\xe9"}\n{"text": 3}\n')
    (tmp_path / "b.txt").write_bytes(b"one\ntwo \xff")
    fine = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, fine.buffers())
    pq.write_table(pa.table({"text": strings}), tmp_path / "c.parquet")
    places = {}
    for name in ("a.jsonl", "b.txt", "c.parquet"):
        report = ReadReport()
        list(read_rows(tmp_path / name, ReadingArgs(), report))
        places[name] = report.broken_rows, report.first_broken.line, report.first_broken.reason
    assert places == {
        "a.jsonl": (2, 5, "not UTF-8 (invalid continuation byte)"),
        "b.txt": (1, 2, "not UTF-8 (invalid start byte)"),
        "c.parquet": (2, 2, "not UTF-8 (unexpected end of data)"),
    }


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("keep", [0.5, 0.99, "flip"])
def test_truncated_and_damaged_files(tmp_path, name, keep):
    write(tmp_path, name)
    data = bytearray((tmp_path / name).read_bytes())
    if keep == "flip":
        data[len(data) // 2] ^= 0xFF
        data[len(data) // 2 + 1] ^= 0xFF
    else:
        data = data[: int(keep * len(data))]
    (tmp_path / name).write_bytes(data)
    if name.endswith("zst") and keep == "flip":
        pytest.skip("zstd frames carry no checksum unless asked for: a flipped bit may go unnoticed")
    with pytest.raises(UserError, match=rf"{name} is cut short or damaged .*; fetch it again"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda path: path.write_bytes(b"PAR1 nothing"), "cannot be read as parquet"),
        (
            lambda path: pq.write_table(pa.table({"content": ["x"]}), path),
            "has no column 'text', only content; .*--text_field",
        ),
        (lambda path: pq.write_table(pa.table({"text": [1]}), path), "column 'text' .* holds int64, not text"),
    ],
)
def test_unusable_parquet(tmp_path, content, told):
    content(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=told):
        read_all(tmp_path)


def test_a_parquet_file_cut_short(tmp_path):
    write(tmp_path, "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
        read_all(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    rows, report = read_all(tmp_path)
    assert [row for row in rows if row[0]] == []
    assert report.broken_rows == 0


def test_other_fields_and_dictionary_columns(tmp_path):
    table = pa.table({"content": pa.array(["a", "b", "a"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"content": "c"}\n')
    rows, _ = read_all(tmp_path, ReadingArgs(text_field="content"))
    assert [text for text, _ in rows] == ["a", "b", "a", "c"]
