"""Damaged and hostile sources, workdirs and packed folders: exit 0 or 2, one line, nothing left, never other bytes."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import struct
import tracemalloc
import zlib
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from random_text import make_documents

from inheritune_lit.cli import main
from inheritune_lit.data import containers, prepare, shards
from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.formats import ReadReport, read_rows
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError

ROWS = [{"text": text, "set": f"s{n % 3}"} for n, text in enumerate(make_documents(120, 21))]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def table(compression: str) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), content, row_group_size=40, compression=compression)
    return content.getvalue()


FILES = {
    "a.jsonl": LINES,
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.txt": b"\n".join(row["text"].encode() for row in ROWS),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.parquet": table("zstd"),
    "b.parquet": table("none"),
}


def damaged(content: bytes, draw: random.Random) -> bytes:
    changed, at = bytearray(content), draw.randrange(max(1, len(content)))
    kind = draw.choice(["cut", "flip", "insert", "remove", "zeros", "ones", "noise"])
    if kind == "cut":
        del changed[at:]
    elif kind == "flip" and changed:
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == "insert":
        changed[at:at] = draw.randbytes(20)
    elif kind == "remove":
        del changed[at : at + 100]
    elif kind == "noise":
        for _ in range(min(20, len(changed))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    else:
        changed[at : at + 16] = (b"\0" if kind == "zeros" else b"\xff") * 16
    return bytes(changed)


def mangled(value, draw: random.Random):
    """JSON with values of other types, and some missing."""
    if draw.random() < 0.1:
        return draw.choice([None, [], {}, -1, "../x", 1e99, True, 2**70])
    if isinstance(value, dict):
        return {key: mangled(item, draw) for key, item in value.items() if draw.random() > 0.04}
    return [mangled(item, draw) for item in value] if isinstance(value, list) else value


def spoil(path, draw: random.Random) -> None:
    if draw.random() < 0.1:
        path.unlink()
    elif path.suffix == ".json" and draw.random() < 0.7:
        path.write_text(json.dumps(mangled(json.loads(path.read_text()), draw)))
    else:
        path.write_bytes(damaged(path.read_bytes(), draw))


def command(capsys, *arguments) -> int:
    """Exit code of ``prepare``, which has to be 0, or 2 with an error in one line."""
    capsys.readouterr()
    code, error = main(["prepare", *map(str, arguments)]), capsys.readouterr().err
    assert code == 0 or (code == 2 and error.splitlines()[-1].startswith("inheritune: error: ")), error
    assert "Traceback" not in error
    return code


def packed_bytes(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*"))}


@pytest.mark.parametrize("name", FILES)
def test_damaged_sources(name, tokenizer_dir, tmp_path, capsys):
    for seed in range(15):
        draw, work = random.Random(f"{name} {seed}"), tmp_path / str(seed)
        work.mkdir()
        (work / name).write_bytes(damaged(FILES[name], draw))
        options = ["--domain_field", "set"] if "txt" not in name and draw.random() < 0.3 else []
        paths = ["--source", work / name, "--tokenizer_dir", tokenizer_dir, "--out_dir", work / "out"]
        code = command(capsys, *paths, "--val_fraction", 0.2, "--num_workers", 1, *options)
        assert sorted(os.listdir(work)) == sorted([name] + ["out"] * (code == 0))


@pytest.fixture
def arguments(tokenizer_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_RANGE_BYTES", 20_000)
    monkeypatch.setattr(shards, "_BUNDLE_BYTES", 0)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.jsonl").write_bytes(LINES)
    return [
        "--source",
        tmp_path / "source",
        "--tokenizer_dir",
        tokenizer_dir,
        "--val_fraction",
        0.2,
        "--num_workers",
        1,
    ]


@pytest.mark.parametrize("options", [[], ["--max_tokens", 5000], ["--drop_duplicates", "true"]])
def test_damaged_workdirs(options, arguments, tmp_path, capsys, monkeypatch):
    """The same bytes come out, or one line does."""
    arguments = [*arguments, *options]
    command(capsys, *arguments, "--out_dir", tmp_path / "whole" / "out")

    def stop(*given) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_finalize", stop)
        assert main(["prepare", *map(str, [*arguments, "--out_dir", tmp_path / "stopped" / "out"])]) == 130
    for seed in range(12):
        draw, work = random.Random(f"{options} {seed}"), tmp_path / str(seed)
        shutil.copytree(tmp_path / "stopped", work)
        spoil(draw.choice(sorted(path for path in work.rglob("*") if path.is_file())), draw)
        if command(capsys, *arguments, "--out_dir", work / "out") == 0:
            assert packed_bytes(work / "out") == packed_bytes(tmp_path / "whole" / "out")
            assert os.listdir(work) == ["out"]


def test_damaged_packed_folders(arguments, tmp_path, capsys):
    command(capsys, *arguments, "--out_dir", tmp_path / "whole" / "out")
    (tmp_path / "source/b.jsonl").write_text("".join(json.dumps({"text": row["text"][::-1]}) + "\n" for row in ROWS))
    for seed in range(25):
        draw, work = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(tmp_path / "whole", work)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        spoil(draw.choice([*files, *[work / "out/inheritune.json"] * 3]), draw)
        before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
        for split, documents in (("train", "packed"), ("val", "separate")):
            with contextlib.suppress(UserError):
                PackedDataset(work / "out", split, 64, documents).batch([0])
        verified = command(capsys, "--verify", work / "out")
        if command(capsys, *arguments, "--out_dir", work / "out") == 2:
            assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
        else:
            assert verified == 0 or not (before.keys() & {work / "out/inheritune.json"})
            command(capsys, "--verify", work / "out")
        assert os.listdir(work) == ["out"]


def test_a_manifest_names_nothing_outside_its_folder(arguments, tmp_path, capsys):
    command(capsys, *arguments, "--out_dir", tmp_path / "out")
    path = tmp_path / "out/inheritune.json"
    path.write_text(path.read_text().replace('"a": {', '"../../a": {', 1))
    with pytest.raises(UserError, match=r"names the domain '../../a'"):
        PackedDataset(tmp_path / "out", "train", 8)


def rows_of(path, **options) -> tuple[list[str], ReadReport]:
    report = ReadReport()
    return [text for text, _ in read_rows(path, ReadingArgs(**options), report)], report


def zeros(path, size: int) -> None:
    """A file that expands to a line of so many NULs."""
    makers = {".gz": partial(gzip.open, compresslevel=1), ".bz2": bz2.open, ".zst": zstandard.open}
    with makers.get(path.suffix, partial(lzma.open, preset=0))(path, mode="wb") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz", ".bz2"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_what_expands_without_end_is_held_in_little_memory(tmp_path, name, ending):
    path = tmp_path / f"{name}{ending}"
    zeros(path, 96 << 20)
    tracemalloc.start()
    texts, report = rows_of(path, max_document_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (texts, report.long_rows) == ([], 1)
    assert peak < 64 << 20


def test_large_windows_are_refused_truly(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_MAX_MEMORY", 1 << 27)
    large = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=large).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(stream.compress(LINES) + stream.flush())
    header = bytearray(lzma.compress(LINES, check=lzma.CHECK_NONE))
    place = header.index(b"\x21\x01", 12) + 2  # the size of the dictionary, 4 GiB here
    header[place] = 40
    end = 12 + header[12] * 4
    header[end : end + 4] = struct.pack("<I", zlib.crc32(bytes(header[12:end])))
    (tmp_path / "b.jsonl.xz").write_bytes(header)
    for name in ("a.jsonl.zst", "b.jsonl.xz"):
        with pytest.raises(UserError, match="needs more than 128 MiB of memory to decompress; compress it again"):
            rows_of(tmp_path / name)


def test_row_groups_that_expand_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_HARMLESS_BYTES", 1 << 20)
    table = pa.table({"text": ["a" * (1 << 20)] * 8})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match=r"row group 0 of .*a\.parquet expands to 8,\d+,\d+ bytes"):
        rows_of(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: (folder / "x.txt").symlink_to(folder.parent / "secret.txt"), "is a link out of"),
        (lambda folder: (folder / "x").symlink_to(folder.parent / "secrets"), "is a link out of"),
        (lambda folder: (folder / "x.txt").symlink_to("../secret.txt"), "is a link out of"),
        (lambda folder: (folder / "x.txt").symlink_to(folder / "x.txt"), "is a link to nowhere"),
        (lambda folder: (folder / "x.txt").symlink_to("/dev/zero"), None),
        (lambda folder: os.mkfifo(folder / "x.txt"), None),
    ],
)
def test_nothing_outside_and_nothing_endless_is_read(arguments, tmp_path, capsys, make, told):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/x.txt").write_text("secret")
    make(tmp_path / "source")
    code = main(["prepare", *map(str, arguments), "--out_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == (2 if told else 0)
    assert (told or "1 pipes, sockets or devices (x.txt)") in error


def test_a_source_that_is_no_file(tokenizer_dir, tmp_path, capsys):
    os.mkfifo(tmp_path / "a.jsonl")
    for source in (tmp_path / "a.jsonl", "/dev/zero"):
        paths = ["--source", source, "--tokenizer_dir", tokenizer_dir, "--out_dir", tmp_path / "out"]
        assert command(capsys, *paths) == 2
