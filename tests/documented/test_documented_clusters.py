"""The SLURM script of docs/clusters.md, with a worker process of this machine instead of SLURM's jobs."""

import re
import sys
from types import SimpleNamespace

from page import ROOT
from random_text import make_documents

PAGE = (ROOT / "docs" / "clusters.md").read_text()


def test_page(tmp_path, tokenizer_dir, monkeypatch, capsys):
    from distributed import LocalCluster

    class OneMachine(LocalCluster):
        """Takes SLURMCluster's arguments."""

        def __init__(self, cores: int, processes: int, memory: str, walltime: str) -> None:
            super().__init__(n_workers=0, threads_per_worker=cores // processes, dashboard_address=None)

        def scale(self, jobs: int) -> None:
            super().scale(min(jobs, 1))

    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=OneMachine))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "smollm2-15l").symlink_to(tokenizer_dir)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "web.txt").write_text("\n".join(make_documents(300, 1)))
    for number, text in enumerate(make_documents(300, 2)):
        (tmp_path / "corpus" / "web.txt").with_name(f"web-{number:05}-of-00300.txt").write_text(text)
    (script,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "SLURMCluster" in block]
    exec(script, {})
    assert capsys.readouterr().out.splitlines()[1].startswith("web ")
    assert sorted(path.name for path in (tmp_path / "data").glob("packed/*")) == ["inheritune.json", "train", "val"]
