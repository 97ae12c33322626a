"""Which files and domains a source has, in a folder and on the hub, and who reads what."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import COMMIT, running_hub
from megatron_pair import parse_pair
from random_text import make_documents

from inheritune_lit.data.args import PrepareArgs, ReadingArgs
from inheritune_lit.data.prepare import prepare
from inheritune_lit.data.sources import find_sources, parse_hub_source
from inheritune_lit.errors import UserError

ROW = '{"text": "x", "meta": {"redpajama_set_name": "RedPajamaC4"}}\n'


def domains(folder, *files: str, **options) -> dict[str, str]:
    """Domain of each file of a folder made of them."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(ROW)
    return {file.name: file.domain for file in find_sources(str(folder), ReadingArgs(**options))}


def test_redpajama_sample(tmp_path):
    assert domains(tmp_path, "arxiv_sample.jsonl", "cc_2019-30_sample.jsonl", "README.md", ".cache/x.jsonl") == {
        "arxiv_sample.jsonl": "arxiv",
        "cc_2019-30_sample.jsonl": "cc_2019-30",
    }


def test_redpajama_1t(tmp_path):
    crawl = "common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl.zst"
    files = ["arxiv/arxiv_024de5df.jsonl", "book/book.jsonl", "c4/c4-train.00000-of-01024.jsonl", crawl]
    assert domains(tmp_path, *files) == dict(zip(files, ["arxiv", "book", "c4", "common_crawl"], strict=True))


def test_numbered_files_are_one_domain(tmp_path):
    files = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "v1.5.txt.gz"]
    assert list(domains(tmp_path, *files).values()) == ["train", "train", "v1.5"]
    assert set(domains(tmp_path, domain="web").values()) == {"web"}


def test_one_file_is_a_source(tmp_path):
    domains(tmp_path, "a/b.jsonl")
    (file,) = find_sources(str(tmp_path / "a" / "b.jsonl"), ReadingArgs())
    assert (file.name, file.domain, file.bytes) == ("b.jsonl", "b", len(ROW))


@pytest.mark.parametrize(
    ("files", "options", "told"),
    [
        (["_sample.jsonl"], {}, "_sample.jsonl names no domain"),
        ([" a.jsonl"], {}, "names the domain ' a'"),
        (["a.jsonl"], {"domain": "../x"}, "--domain names the domain '../x'"),
        ([f"{n}.jsonl" for n in range(201)], {}, "would make 201 domains, such as '0'.*--domain"),
        (["a.csv", "b.md"], {}, "no .jsonl, .* file in .* among 2 files"),
    ],
)
def test_unusable_sources(tmp_path, files, options, told):
    with pytest.raises(UserError, match=told):
        domains(tmp_path, *files, **options)


def test_links_count_once_and_lead_somewhere(tmp_path):
    kept, folder = tmp_path / "datasets--a--b/blobs/abc", tmp_path / "datasets--a--b/snapshots/1/corpus"
    kept.parent.mkdir(parents=True)
    kept.write_text(ROW)
    folder.mkdir(parents=True)
    (folder / "a.jsonl").symlink_to(kept)  # as in the hub's cache
    assert domains(folder) == {"a.jsonl": "a"}
    (folder / "loop").symlink_to(folder)
    with pytest.raises(UserError, match=r"loop is .*corpus once more, through a link"):
        domains(folder)
    (folder / "loop").unlink()
    kept.unlink()
    with pytest.raises(UserError, match=r"a\.jsonl is a link to nowhere"):
        domains(folder)


def test_rows_may_name_their_domain(tokenizer_dir, tmp_path):
    """SlimPajama's layout."""
    names = ["RedPajamaC4", "RedPajamaArXiv"]
    texts = make_documents(80, 3)
    rows = [{"text": text, "meta": {"redpajama_set_name": names[n % 2]}} for n, text in enumerate(texts)]
    for number in range(2):
        path = tmp_path / f"train/chunk{number}/example.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[number::2][::-1]))
    (tmp_path / "train/chunk1/other.jsonl").write_text((json.dumps(rows[0]) + "\n") * 100 + '{"text": "no domain"}\n')
    options = {"val_fraction": 0.2, "domain_field": "meta.redpajama_set_name"}
    prepare(PrepareArgs(tmp_path / "train", tokenizer_dir, tmp_path / "out", **options))
    manifest = json.loads((tmp_path / "out" / "inheritune.json").read_text())
    assert sorted(manifest["domains"]) == ["RedPajamaArXiv", "RedPajamaC4"]
    documents = {}
    for name, record in manifest["domains"].items():
        assert {source["name"] for source in record["sources"]} <= {source["name"] for source in manifest["sources"]}
        documents[name] = sum(len(parse_pair(tmp_path / "out" / split / name)) for split in ("train", "val"))
        assert documents[name] == sum(record[split]["documents"] for split in ("train", "val"))
    assert documents == {"RedPajamaArXiv": 40, "RedPajamaC4": 140}
    assert [source["broken_rows"] for source in manifest["sources"]] == [0, 0, 1]
    # Adding a file keeps each source's documents where they belong.
    (tmp_path / "train/chunk0/more.jsonl").write_text(json.dumps(rows[1]) + "\n")
    prepare(PrepareArgs(tmp_path / "train", tokenizer_dir, tmp_path / "out", **options))
    prepare(PrepareArgs(tmp_path / "train", tokenizer_dir, tmp_path / "fresh", **options))
    for file in sorted((tmp_path / "fresh").glob("*/*.bin")):
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(tmp_path / "fresh")).read_bytes()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.fixture
def dataset(corpus, tmp_path):
    """The corpus as a data set of the hub, in a sub-folder."""
    folder = tmp_path / "remote"
    (folder / "sample").mkdir(parents=True)
    for file in corpus.iterdir():
        file.rename(folder / "sample" / file.name)
    (folder / "README.md").write_text("# data")
    (folder / "other.jsonl").write_text("not asked for")
    return folder


def test_a_data_set_of_the_hub_file_by_file(hub, dataset, tokenizer_dir, tmp_path):
    hub.repositories["maker/text"] = dataset
    prepare(PrepareArgs(dataset / "sample", tokenizer_dir, tmp_path / "local", val_fraction=0.2))
    arguments = ["--source", "hf://datasets/maker/text@main/sample", "--tokenizer_dir", tokenizer_dir]
    arguments += ["--out_dir", tmp_path / "out", "--val_fraction", 0.2, "--num_workers", 2]
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [sys.executable, "-m", "inheritune_lit", "prepare", *map(str, arguments)],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    for file in sorted((tmp_path / "local").glob("*/*")):
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(tmp_path / "local")).read_bytes()
    assert sorted(name for name, _, _ in hub.reads) == ["book_sample.jsonl", "c4_sample.jsonl"]
    assert not list((tmp_path / "home").rglob("*.jsonl"))
    assert not list(tmp_path.glob(".out*"))
    sources = json.loads((tmp_path / "out" / "inheritune.json").read_text())["sources"]
    assert sources[0]["path"] == f"hf://datasets/maker/text@{COMMIT}/sample/book_sample.jsonl"
    assert sources[0]["version"] == sources[0]["sha256"]


def test_a_download_that_breaks_off_is_one_line_and_continues(hub, dataset, tokenizer_dir, tmp_path, monkeypatch):
    hub.repositories["maker/text"] = dataset
    (dataset / "other.jsonl").unlink()
    monkeypatch.setattr("inheritune_lit.data.shards._BUNDLE_BYTES", 0)
    hub.fail_after = 1
    with pytest.raises(UserError, match=r"cannot download maker/text .*run the same command again to continue"):
        prepare(PrepareArgs("maker/text", tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    assert not (tmp_path / "out").exists()
    hub.fail_after = None
    before = len(hub.reads)
    prepare(PrepareArgs("maker/text", tokenizer_dir, tmp_path / "out", val_fraction=0.2))
    assert {name for name, _, _ in hub.reads[before:]} == {"c4_sample.jsonl"}  # the other one is done


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("hf://datasets/maker/nothing", "no public hub repository is called 'maker/nothing'; check --source"),
        ("maker/secret", "maker/secret is gated: ask for access at https://huggingface.co/datasets/maker/secret"),
        ("hf://maker/text", "hf://maker/text is not a data set; write hf://datasets/"),
        ("hf://datasets/maker", "is not a data set of the hub; write hf://datasets/org/name"),
        ("hf://datasets/maker/text/nowhere", "maker/text has no folder nowhere"),
    ],
)
def test_what_the_hub_lacks(hub, dataset, tokenizer_dir, tmp_path, source, told):
    hub.repositories["maker/text"] = dataset
    hub.gated.add("maker/secret")
    with pytest.raises(UserError, match=told):
        prepare(PrepareArgs(source, tokenizer_dir, tmp_path / "out"))


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a/b", ("a/b", None, "")),
        ("hf://datasets/a/b-1.x@main/c/d/", ("a/b-1.x", "main", "c/d")),
        ("hf://datasets/a/b@refs/convert/parquet/plain_text", ("a/b", "refs/convert/parquet", "plain_text")),
        ("hf://datasets/a/b@refs%2Fpr%2F3", ("a/b", "refs/pr/3", "")),
    ],
)
def test_addresses_on_the_hub(source, parts):
    assert parse_hub_source(source) == parts
