"""Each recipe of a corpus prepares a miniature of that corpus, in its own layout and format."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from random_text import make_documents

from inheritune_lit.cli import main

FOLDER = Path(__file__).parents[2] / "recipes" / "data"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LLAMA = {"common_crawl": 67, "c4": 15, "github": 4.5, "wikipedia": 4.5, "book": 4.5, "arxiv": 2.5, "stackexchange": 2}


def rows(count: int, seed: int, **more) -> list[dict]:
    return [{"text": text[:300], "meta": {"n": str(seed)}, **more} for text in make_documents(count, seed)]


def write(path: Path, chosen: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in chosen).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(chosen), path)
    else:
        path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)


def redpajama_1t(folder: Path) -> list[str]:
    for seed, (domain, size) in enumerate({"common_crawl": 600, "c4": 200}.items()):
        for number in range(3):
            write(folder / domain / "2019-30" / f"en_{number}.jsonl.zst", rows(size // 3, 10 * seed + number))
    for seed, domain in enumerate(sorted(set(LLAMA) - {"common_crawl", "c4"}), start=50):
        write(folder / domain / f"{domain}.jsonl", rows(100, seed))
    return list(LLAMA)


def redpajama_sample(folder: Path) -> list[str]:
    domains = ["arxiv", "book", "c4", "cc_2019-30", "cc_2023-06", "github", "stackexchange", "wikipedia"]
    for seed, domain in enumerate(domains):
        write(folder / f"{domain}_sample.jsonl", rows(40, seed))
    return domains


def openwebtext(folder: Path) -> list[str]:
    for number in range(2):
        write(folder / "plain_text" / f"train-0000{number}-of-00002.parquet", rows(3000, number))
    return ["openwebtext"]


def fineweb_edu(folder: Path) -> list[str]:
    for number in range(2):
        write(folder / f"00{number}_00000.parquet", rows(1500, number, score=3.1, url="u"))
    return ["fineweb_edu"]


def slimpajama(folder: Path) -> list[str]:
    names = ["RedPajamaC4", "RedPajamaCommonCrawl"]
    for number in range(2):
        chosen = [{**row, "meta": {"redpajama_set_name": names[n % 2]}} for n, row in enumerate(rows(3000, number))]
        write(folder / f"chunk{number}" / "example_train_0.jsonl.zst", chosen)
    return names


CORPORA = {
    "fineweb-edu": fineweb_edu,
    "openwebtext-9b": openwebtext,
    "redpajama-1t-50b": redpajama_1t,
    "redpajama-1t-50b-llama-mixture": redpajama_1t,
    "redpajama-1t-sample": redpajama_sample,
    "slimpajama": slimpajama,
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(tokenizer_dir, tmp_path, capsys, name):
    domains = CORPORA[name](tmp_path / "source")
    arguments = {"--config": FOLDER / f"{name}.yaml", "--source": tmp_path / "source", "--tokenizer_dir": tokenizer_dir}
    arguments |= {"--out_dir": tmp_path / "out", "--num_workers": 1}
    recipe = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if "max_tokens" in recipe:
        assert recipe["max_tokens"] == 50_000_000_000
        arguments |= {"--max_tokens": 50_000, "--val_fraction": 0.05}
    if recipe["val_fraction"] < 0.001:
        arguments |= {"--val_fraction": 0.001}
    assert main(["prepare", *(str(word) for pair in arguments.items() for word in pair)]) == 0, capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "inheritune.json").read_text())
    assert sorted(manifest["domains"]) == sorted(domains)
    tokens = {
        domain: sum(record[split]["tokens"] for split in ("train", "val"))
        for domain, record in manifest["domains"].items()
    }
    if "max_tokens" in recipe:
        assert 47_500 < sum(tokens.values()) <= 50_000
    if "mixture" in recipe:
        assert recipe["mixture"] == LLAMA
        for domain, part in LLAMA.items():
            assert abs(tokens[domain] / 50_000 - part / 100) < 0.01


def test_every_recipe_has_its_corpus():
    assert sorted(CORPORA) == RECIPES
