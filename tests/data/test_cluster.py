"""A Dask cluster, or any other executor, gives the bytes of one process, and the death of a worker costs nothing."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inheritune_lit.data import shards
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.prepare import prepare
from inheritune_lit.errors import UserError
from inheritune_lit.io import executors


def packed_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*"))}


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each a process."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def small_shards(monkeypatch):
    """Many shards out of little text, and a worker for each."""
    monkeypatch.setattr(shards, "_RANGE_BYTES", 10_000)
    monkeypatch.setattr(shards, "_BUNDLE_BYTES", 0)
    monkeypatch.setattr("inheritune_lit.data.prepare._BYTES_WORTH_A_WORKER", 1)


def test_a_cluster_gives_the_pools_bytes(cluster, corpus, tokenizer_dir, tmp_path, small_shards, monkeypatch):
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "pool", val_fraction=0.2, num_workers=2))
    monkeypatch.chdir(tmp_path)  # the workers' folder is another one
    relative = corpus.relative_to(tmp_path)
    prepare(PrepareArgs(relative, tokenizer_dir, "out", val_fraction=0.2, cluster=cluster.scheduler_address))
    assert packed_bytes(tmp_path / "out") == packed_bytes(tmp_path / "pool") != {}
    assert not list(tmp_path.glob(".*"))


def test_any_executor_does(corpus, tokenizer_dir, tmp_path, small_shards):
    prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "one", val_fraction=0.2, num_workers=1))
    with ThreadPoolExecutor(3) as threads:
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", val_fraction=0.2), executor=threads)
    assert packed_bytes(tmp_path / "out") == packed_bytes(tmp_path / "one") != {}


def test_a_killed_worker_costs_nothing(cluster, large_corpus, tokenizer_dir, tmp_path):
    from distributed import Client

    with Client(cluster.scheduler_address, set_as_default=False) as client:
        pids = list(client.run(os.getpid).values())
    folder, killed = tmp_path / ".out.prepare" / "shards", []

    def kill_in_the_middle() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            done = [path for path in folder.glob("*/done.json") if ".tmp-" not in path.parent.name]
            if done and len(list(folder.glob("*.tmp-*"))) == 2:  # both workers are at work
                os.kill(pids[0], signal.SIGKILL)
                killed.append(len(done))
                return
            time.sleep(0.002)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    prepare(PrepareArgs(large_corpus, tokenizer_dir, tmp_path / "out", cluster=cluster.scheduler_address))
    killer.join()
    assert killed and killed[0] < 7
    prepare(PrepareArgs(large_corpus, tokenizer_dir, tmp_path / "fresh", num_workers=1))
    assert packed_bytes(tmp_path / "out") == packed_bytes(tmp_path / "fresh") != {}
    assert not list(tmp_path.glob(".*"))


def test_a_fault_in_a_cluster_is_one_line(cluster, corpus, tokenizer_dir, tmp_path, small_shards):
    (corpus / "bad.jsonl.gz").write_bytes(b"not compressed")
    with pytest.raises(UserError, match=r"bad\.jsonl\.gz is cut short or damaged"):
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", cluster=cluster.scheduler_address))
    assert not (tmp_path / "out").exists()


def test_what_a_cluster_needs_is_said(corpus, tokenizer_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_CONNECT_SECONDS", 1)
    args = PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", cluster="tcp://127.0.0.1:1")
    with pytest.raises(UserError, match=r"--cluster tcp://127\.0\.0\.1:1: no Dask scheduler answers there \(.*\)"):
        prepare(args)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'inheritune-lit\[cluster\]'"):
        prepare(args)
    with pytest.raises(UserError, match="--num_workers counts processes of this machine, --cluster has its own"):
        PrepareArgs(corpus, tokenizer_dir, tmp_path / "out", num_workers=2, cluster="tcp://127.0.0.1:1")
    assert not list(tmp_path.glob(".*"))
