"""`inheritune prepare` against litdata, datasets and bare sentencepiece: ratios within one run on the same two cores.

    pip install litdata datasets
    python benchmarks/prepare.py --data DIR --folder /scratch

DIR holds `redpajama-sample/*.jsonl`, `books/*.jsonl.gz` and `tokenizers/llama2/tokenizer.model`. Everybody reads the
same jsonl files with the field `text` alone, and encodes with the same SentencePiece model. Writes
benchmarks/results/prepare.json.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sentencepiece
from measuring import measure

from inheritune_lit.data.megatron import open_documents

RESULTS = Path(__file__).parent / "results"
CORES = 2

LITDATA = """
import json, sys, torch, sentencepiece
from litdata import TokensLoader, optimize

source, out, model = sys.argv[1:]
processor = None

def encode(path):
    global processor
    processor = processor or sentencepiece.SentencePieceProcessor(model_file=model)
    with open(path, encoding="utf-8") as rows:
        for row in rows:
            yield torch.tensor([*processor.encode(json.loads(row)["text"]), processor.eos_id()], dtype=torch.int32)

if __name__ == "__main__":
    from pathlib import Path
    files = sorted(map(str, Path(source).rglob("*.jsonl")))
    optimize(encode, inputs=files, output_dir=out, chunk_bytes="64MB", num_workers=2, item_loader=TokensLoader(),
             verbose=False)
"""

DATASETS = """
import sys, sentencepiece
from pathlib import Path
from datasets import load_dataset

source, out, model = sys.argv[1:]
processor = None

def encode(batch):
    global processor
    processor = processor or sentencepiece.SentencePieceProcessor(model_file=model)
    return {"ids": [[*ids, processor.eos_id()] for ids in processor.encode(batch["text"], num_threads=1)]}

if __name__ == "__main__":
    files = sorted(map(str, Path(source).rglob("*.jsonl")))
    rows = load_dataset("json", data_files=files, split="train", cache_dir=out + "/cache")
    rows.map(encode, batched=True, num_proc=2, remove_columns=["text"])
"""

BARE = """
import json, sys, time, sentencepiece
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

source, out, model = sys.argv[1:]
processor = sentencepiece.SentencePieceProcessor(model_file=model)

def count(texts):
    return sum(map(len, processor.encode(texts, num_threads=1, out_type="numpy")))

if __name__ == "__main__":
    texts = [json.loads(row)["text"] for file in sorted(Path(source).rglob("*.jsonl")) for row in file.open()]
    times = {}
    start = time.monotonic()
    for first in range(0, len(texts), 500):
        processor.encode(texts[first : first + 500], num_threads=2, out_type="numpy")
    times["threads"] = time.monotonic() - start
    texts.sort(key=len, reverse=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(count, [["a"]] * 2))
        start = time.monotonic()
        list(pool.map(count, [texts[first :: 200] for first in range(200)]))
        times["processes"] = time.monotonic() - start
    Path(out).write_text(json.dumps(times))
"""


def write_corpus(data: Path, folder: Path, book_bytes: int) -> None:
    """The sample's files by domain and the first books in files of 4 MB, with nothing but the text."""
    for file in sorted((data / "redpajama-sample").glob("*.jsonl")):
        with file.open(encoding="utf-8") as rows:
            _write(folder / file.name, (json.loads(row)["text"] for row in rows))
    texts, size, number = [], 0, 0
    with gzip.open(next((data / "books").glob("*.jsonl.gz")), "rt", encoding="utf-8") as rows:
        for row in rows:
            texts.append(json.loads(row)["text"])
            size += len(texts[-1])
            if size >= 4_000_000:
                _write(folder / "books" / f"{number:03}.jsonl", texts)
                book_bytes, texts, size, number = book_bytes - size, [], 0, number + 1
            if book_bytes <= 0:
                return


def _write(path: Path, texts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def corpus_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Domain and text of each document, in the order of packing."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.jsonl")}
    for name in sorted(files):
        domain = name.partition("/")[0] if "/" in name else Path(name).stem.removesuffix("_sample")
        with files[name].open(encoding="utf-8") as rows:
            for row in rows:
                yield domain, json.loads(row)["text"]


def compare(packed: Path, corpus: Path, model: Path) -> dict[str, int]:
    """Documents whose packed ids are not sentencepiece's own. Validation is empty but for a few documents."""
    judge = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected: dict[bytes, int] = {}
    for _, text in corpus_texts(corpus):
        if text.strip():
            ids = np.array([*judge.encode(text), judge.eos_id()], dtype=np.uint16).tobytes()
            expected[ids] = expected.get(ids, 0) + 1
    documents = differing = tokens = 0
    for index in packed.glob("*/*.idx"):
        ids, lengths = open_documents(index.with_suffix(""))
        for part in np.split(ids, np.cumsum(lengths)[:-1]):
            documents, tokens = documents + 1, tokens + len(part)
            left = expected.get(part.tobytes(), 0)
            differing += not left
            expected[part.tobytes()] = left - 1
    return {"documents": documents, "tokens": tokens, "differing": differing, "missing": sum(expected.values())}


def run(data: Path, folder: Path, book_bytes: int, repeats: int) -> dict:
    """All contenders in turn, ``repeats`` times, then memory at ten times the corpus."""
    model, corpus, out = data / "tokenizers" / "llama2", folder / "corpus", folder / "out"
    write_corpus(data, corpus, book_bytes)
    size = sum(file.stat().st_size for file in corpus.rglob("*.jsonl"))
    prepare = [sys.executable, "-m", "inheritune_lit", "prepare", "--tokenizer_dir", str(model), "--out_dir", str(out)]
    prepare += ["--val_fraction", "0.001", "--num_workers", str(CORES)]
    arguments = [str(corpus), str(out), str(model / "tokenizer.model")]
    commands = {"inheritune prepare": [*prepare, "--source", str(corpus)]}
    for name, program in (("litdata.optimize", LITDATA), ("datasets.map", DATASETS)):
        script = folder / f"{name.partition('.')[0]}_route.py"
        script.write_text(program)
        commands[name] = [sys.executable, str(script), *arguments]
    bare = folder / "bare.py"
    bare.write_text(BARE)
    rows: dict[str, list[dict]] = {}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    parity = None
    for _ in range(repeats):
        for name, command in commands.items():
            rows.setdefault(name, []).append(measure(command, quiet))
            if name == "inheritune prepare" and parity is None:
                parity = compare(out, corpus, model / "tokenizer.model")
            shutil.rmtree(out, ignore_errors=True)
        measure([sys.executable, str(bare), str(corpus), str(folder / "bare.json"), arguments[2]])
        times = json.loads((folder / "bare.json").read_text())
        for way, seconds in times.items():
            rows.setdefault(f"bare sentencepiece, {CORES} {way}", []).append({"seconds": round(seconds, 2)})
    assert parity is not None
    for number in range(10):
        (folder / "tenfold").mkdir(exist_ok=True)
        shutil.copytree(corpus, folder / "tenfold" / f"copy{number}", copy_function=os.link)
    tenfold = measure([*prepare, "--source", str(folder / "tenfold")], quiet)
    seconds = {name: statistics.median(row["seconds"] for row in measured) for name, measured in rows.items()}
    ours, ceiling = seconds["inheritune prepare"], min(value for name, value in seconds.items() if "bare" in name)
    return {
        "command": "python benchmarks/prepare.py --data DATA --folder FOLDER",
        "corpus": {"bytes": size, "files": len(list(corpus.rglob("*.jsonl")))},
        "parity with sentencepiece": parity,
        "speed, times as fast": {
            **{
                f"prepare / {name}": round(seconds[name] / ours, 2) for name in commands if name != "inheritune prepare"
            },
            "prepare / bare sentencepiece batch encoding": round(ceiling / ours, 2),
        },
        "tokens a second": {name: round(parity["tokens"] / value) for name, value in seconds.items()},
        "peak memory, MB": {
            "corpus": max(row["peak_anonymous_mb"] for row in rows["inheritune prepare"]),
            "ten times the corpus": tenfold["peak_anonymous_mb"],
        },
        "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("sentencepiece", "litdata", "datasets", "pyarrow", "numpy")},
        "rows": rows | {"inheritune prepare, ten times the corpus": [tenfold]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder to make; removed at the end")
    parser.add_argument("--book_bytes", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    arguments.folder.mkdir(parents=True)
    start = time.monotonic()
    try:
        results = run(arguments.data, arguments.folder, arguments.book_bytes, arguments.repeats)
    finally:
        shutil.rmtree(arguments.folder)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prepare.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=2))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
