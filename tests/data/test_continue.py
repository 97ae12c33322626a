"""Whatever happens between the start and the end of a preparation, and whoever does it, the same bytes come out."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inheritune_lit.data import shards
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.manifest import content_sha256
from inheritune_lit.data.prepare import prepare
from inheritune_lit.data.shards import ShardWriter, WorkDir
from inheritune_lit.errors import UserError


def packed_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*"))}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


def write_rows(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def small_shards(monkeypatch):
    """Many shards out of little text, and a worker for each."""
    monkeypatch.setattr(shards, "_RANGE_BYTES", 10_000)
    monkeypatch.setattr(shards, "_BUNDLE_BYTES", 0)
    monkeypatch.setattr("inheritune_lit.data.prepare._BYTES_WORTH_A_WORKER", 1)


@pytest.fixture
def sources_read(monkeypatch):
    """Names of the sources that are read, as they are."""
    names, write = [], ShardWriter.write

    def noted(writer, shard, report) -> None:
        names.extend(part.source.name for part in shard.ranges)
        write(writer, shard, report)

    monkeypatch.setattr(ShardWriter, "write", noted)
    return names


def prepare_some(args: PrepareArgs, count: int) -> None:
    """Interrupt a preparation in one process when it has done some of the shards."""
    write, numbers = ShardWriter.write, iter(range(count))

    def stopping(writer, shard, report) -> None:
        if next(numbers, None) is None:
            raise KeyboardInterrupt
        write(writer, shard, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare(args)


@pytest.fixture
def expected(corpus, tokenizer_dir, tmp_path):
    """The corpus in one piece."""
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "expected", val_fraction=0.2, num_workers=1))
    return packed_bytes(tmp_path / "expected")


def test_workers_change_nothing(corpus, tokenizer_dir, tmp_path, expected, small_shards):
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=3))
    assert packed_bytes(tmp_path / "out") == expected
    assert content_sha256(tmp_path / "out") == content_sha256(tmp_path / "expected")
    assert leftovers(tmp_path) == []


def test_new_files_are_added_and_old_ones_not_read(corpus, documents, tokenizer_dir, tmp_path, expected, sources_read):
    hidden = tmp_path / "hidden.jsonl"
    shutil.move(corpus / "book_sample.jsonl", hidden)
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    shutil.move(hidden, corpus / "book_sample.jsonl")
    write_rows(corpus / "a" / "first.jsonl", documents["c4"][:30])
    write_rows(corpus / "c4" / "more.jsonl", documents["c4"][30:60])  # an old domain grows
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    assert sources_read == ["c4_sample.jsonl", "a/first.jsonl", "book_sample.jsonl", "c4/more.jsonl"]
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "fresh", val_fraction=0.2))
    assert packed_bytes(tmp_path / "out") == packed_bytes(tmp_path / "fresh")
    assert content_sha256(tmp_path / "out") == content_sha256(tmp_path / "fresh")
    manifests = [json.loads((tmp_path / name / "inheritune.json").read_text()) for name in ("out", "fresh")]
    for manifest in manifests:
        del manifest["created"]
    assert manifests[0] == manifests[1]
    assert leftovers(tmp_path) == []


def test_nothing_new_is_no_fault(corpus, tokenizer_dir, tmp_path, expected, sources_read, logged):
    moved = tmp_path / "moved"
    shutil.copytree(corpus, moved, copy_function=shutil.copyfile)  # with new time stamps
    before = (tmp_path / "expected" / "inheritune.json").read_bytes()
    prepare(PrepareArgs(moved, tokenizer_dir, tmp_path / "expected", val_fraction=0.2))
    assert "holds all of it already" in logged.text
    assert sources_read == []
    assert (tmp_path / "expected" / "inheritune.json").read_bytes() == before
    assert leftovers(tmp_path) == []


def change_one_letter(corpus):
    text = (corpus / "c4_sample.jsonl").read_text()
    (corpus / "c4_sample.jsonl").write_text(text.replace("model", "modem", 1))


@pytest.mark.parametrize(
    ("spoil", "options", "told"),
    [
        (
            lambda corpus: (corpus / "c4_sample.jsonl").unlink(),
            {},
            "c4_sample.jsonl is in .* and no longer in the source",
        ),
        (change_one_letter, {}, "c4_sample.jsonl has changed since .*expected was made"),
        (lambda corpus: None, {"val_fraction": 0.3}, "other options: --val_fraction was 0.2, now it is 0.3"),
    ],
)
def test_what_would_not_fit_is_refused(corpus, tokenizer_dir, tmp_path, expected, spoil, options, told):
    spoil(corpus)
    with pytest.raises(UserError, match=told):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "expected", **{"val_fraction": 0.2, **options}))
    assert packed_bytes(tmp_path / "expected") == expected


def test_another_tokenizer_is_refused(corpus, tokenizer_dir, tmp_path, expected):
    other = tmp_path / "other"
    shutil.copytree(tokenizer_dir, other)
    manifest = json.loads((tmp_path / "expected" / "inheritune.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (tmp_path / "expected" / "inheritune.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was made with another tokenizer"):
        prepare(PrepareArgs(corpus, other, tmp_path / "expected", val_fraction=0.2))


def test_unfinished_work_of_other_options_is_kept_and_named(corpus, tokenizer_dir, tmp_path, expected, small_shards):
    prepare_some(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1), 1)
    with pytest.raises(
        UserError, match=r"\.out\.prepare holds unfinished work of other options: --val_fraction was 0.2"
    ):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.3))
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    assert packed_bytes(tmp_path / "out") == expected


def test_a_file_that_changed_meanwhile_is_read_again(corpus, documents, tokenizer_dir, tmp_path, small_shards):
    prepare_some(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1), 13)
    change_one_letter(corpus)
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1))
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "fresh", val_fraction=0.2, num_workers=1))
    assert packed_bytes(tmp_path / "out") == packed_bytes(tmp_path / "fresh")


def test_two_at_once_are_refused(corpus, tokenizer_dir, tmp_path):
    with (
        WorkDir(tmp_path / "out").locked(),
        pytest.raises(UserError, match=r"is at work on .*out; wait for it"),
    ):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2))


def test_a_kill_between_the_two_renames(corpus, tokenizer_dir, tmp_path, expected, logged):
    out, work = tmp_path / "expected", WorkDir(tmp_path / "expected")
    (tmp_path / ".expected.partial" / "train").mkdir(parents=True)
    work.shards.mkdir(parents=True)
    out.rename(tmp_path / ".expected.old")
    prepare(PrepareArgs(corpus, tokenizer_dir, out, val_fraction=0.2))
    assert "holds all of it already" in logged.text
    assert packed_bytes(out) == expected
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("limit", [5_000, 40_000])  # a shard's file; the merged file
def test_a_full_disk_leaves_nothing_half_written(corpus, tokenizer_dir, tmp_path, expected, small_shards, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert max(map(len, expected.values())) > limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*out.*: File too large; free space or give another"):
            prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*/**/*.tmp-*"))
    assert not list(tmp_path.glob(".out.partial-*"))
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1))
    assert packed_bytes(tmp_path / "out") == expected


def start(source: Path, tokenizer_dir: Path, out: Path, workers: int) -> subprocess.Popen:
    arguments = ["--source", source, "--tokenizer_dir", tokenizer_dir, "--out_dir", out, "--num_workers", workers]
    return subprocess.Popen(
        [sys.executable, "-m", "inheritune_lit", "prepare", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test runner may ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_shards(process: subprocess.Popen, work: Path, count: int) -> list[Path]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        done = [path for path in work.glob("shards/*/done.json") if ".tmp-" not in path.parent.name]
        if len(done) >= count:
            return done
        time.sleep(0.002)
    pytest.fail(f"no {count} shards: {process.communicate()}")


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_continues(large_corpus, tokenizer_dir, tmp_path, sources_read, workers):
    out, work = tmp_path / "out", tmp_path / ".out.prepare"
    process = start(large_corpus, tokenizer_dir, out, workers)
    done = wait_for_shards(process, work, 2)
    process.kill()
    process.communicate()
    assert not out.exists()
    prepare(PrepareArgs(large_corpus, tokenizer_dir, out, num_workers=1))
    assert len(sources_read) <= 8 - len(done)
    prepare(PrepareArgs(large_corpus, tokenizer_dir, tmp_path / "fresh", num_workers=1))
    assert packed_bytes(out) == packed_bytes(tmp_path / "fresh")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("workers", "number", "code"), [(1, signal.SIGTERM, 143), (2, signal.SIGINT, 130)])
def test_a_stopped_run_ends_cleanly(large_corpus, tokenizer_dir, tmp_path, workers, number, code):
    out, work = tmp_path / "out", tmp_path / ".out.prepare"
    process = start(large_corpus, tokenizer_dir, out, workers)
    wait_for_shards(process, work, 1)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert f"finished shards are kept in {work}; the same command continues" in error
    assert "Traceback" not in error
    assert not out.exists()
    assert not list(work.glob("**/*.tmp-*"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker through /proc, which only Linux has")
def test_a_killed_worker_is_one_line(large_corpus, tokenizer_dir, tmp_path):
    process = start(large_corpus, tokenizer_dir, tmp_path / "out", 2)
    wait_for_shards(process, tmp_path / ".out.prepare", 1)
    os.kill(children(process)[-1], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2, error
    assert "a worker process ended with SIGKILL, perhaps for want of memory" in error.splitlines()[-1]


def test_kills_at_any_change_of_a_file(corpus, documents, tokenizer_dir, tmp_path, expected, small_shards):
    """Also while a folder is appended to; what is seen in between is the old data or the new, whole."""
    write_rows(corpus / "more.jsonl", documents["c4"][:20])
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "all", val_fraction=0.2, num_workers=1))
    wanted, draw = packed_bytes(tmp_path / "all"), random.Random(0)
    for number in range(12):
        out = tmp_path / str(number) / "out"
        if number % 2:
            shutil.copytree(tmp_path / "expected", out)
        args = PrepareArgs(corpus, tokenizer_dir, out, val_fraction=0.2, num_workers=1)
        for _ in range(draw.randrange(1, 3)):
            left = iter(range(draw.randrange(1, 250)))
            if (child := os.fork()) == 0:

                def kill(event: str, given: tuple, left=left) -> None:
                    if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "open") and next(left, None) is None:
                        os.kill(os.getpid(), signal.SIGKILL)

                sys.addaudithook(kill)
                prepare(args)
                os._exit(0)
            os.waitpid(child, 0)
            assert not out.exists() or packed_bytes(out) in (expected, wanted)
        prepare(args)
        assert packed_bytes(out) == wanted
        assert os.listdir(out.parent) == ["out"]
        assert not leftovers(out)


def test_a_new_domain_beside_an_unfinished_subset(corpus, documents, tokenizer_dir, tmp_path, small_shards):
    args = PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2, num_workers=1, max_tokens=9000)
    prepare_some(args, 1)
    write_rows(corpus / "more.jsonl", documents["c4"][:20])
    with pytest.raises(UserError, match="unfinished work on a corpus without more; remove that folder"):
        prepare(args)


def test_a_link_and_its_folder_are_one_output(corpus, tokenizer_dir, tmp_path, expected):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "link", val_fraction=0.2))
    assert packed_bytes(tmp_path / "real") == expected
    with (
        WorkDir(tmp_path / "real").locked(),
        pytest.raises(UserError, match="is at work on"),
    ):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "link", val_fraction=0.2))


def test_a_full_disk_says_what_helps_and_broken_rows_do_not(corpus, tokenizer_dir, tmp_path, logged):
    with (corpus / "c4_sample.jsonl").open("a") as file:
        file.write("{\n" * 10)
    with pytest.raises(UserError, match="are broken"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", num_workers=1))
    assert "the same command continues" not in logged.text
    assert leftovers(tmp_path) == []
