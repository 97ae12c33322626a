"""Reading packed data: blocks against a brute-force cut, damage detected, and the right model asked for."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
import yaml
from litgpt.model import GPT

from inheritune_lit.checkpoint.config import Config, load_config
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.manifest import content_sha256, load_packed_manifest
from inheritune_lit.data.megatron import DocumentWriter, open_documents
from inheritune_lit.data.packed import PADDING, PackedDataset, SeparateCut, check_fits_model
from inheritune_lit.data.prepare import prepare
from inheritune_lit.errors import UserError


@pytest.fixture
def packed(corpus, tokenizer_dir, tmp_path):
    out = tmp_path / "packed"
    prepare(PrepareArgs(corpus, tokenizer_dir, out, val_fraction=0.2))
    return out


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("block_size", [7, 64])
def test_blocks_are_windows_of_the_domains(packed, split, block_size):
    dataset = PackedDataset(packed, split, block_size)
    expected = []
    for domain in ("book", "c4"):
        tokens = np.fromfile(packed / split / f"{domain}.bin", dtype=np.uint16).tolist()
        start = 0
        while start + block_size + 1 <= len(tokens):
            expected.append((domain, tokens[start : start + block_size + 1]))
            start += block_size
    assert len(dataset) == len(expected)
    for block, (domain, tokens) in enumerate(expected):
        assert dataset[block].tolist() == tokens
        assert dataset.domains_of([block]) == [domain]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.fixture
def documents_folder(tmp_path):
    """Packed data of known documents: many lengths, empty ones, three domains, one of them without any."""
    draw, texts = np.random.default_rng(0), {}
    lengths = {"a": draw.integers(0, 40, 1000), "b": np.array([1, 1, 0]), "c": np.array([0, 200, 1, 0, 0, 9, 2])}
    domains = {}
    (tmp_path / "train").mkdir()
    for name, own in lengths.items():
        texts[name] = [draw.integers(0, 60_000, length).tolist() for length in own]
        with DocumentWriter(tmp_path / "train" / name, "uint16") as writer:
            for text in texts[name]:
                writer.add(text)
        domains[name] = {"train": {"documents": len(own), "tokens": int(own.sum())}}
    domains["nothing"] = {"train": {"documents": 0, "tokens": 0}}  # and no files
    tokenizer = {"file": "tokenizer.json", "sha256": "", "vocab_size": 60_000, "eos_id": None}
    manifest = {"kind": "packed_data", "tokenizer": tokenizer, "dtype": "uint16", "options": {}, "max_token_id": 59_999}
    (tmp_path / "inheritune.json").write_text(json.dumps({**manifest, "domains": domains}))
    return tmp_path, texts


@pytest.mark.parametrize("block_size", [1, 7, 16, 500])
def test_separate_blocks_hold_one_document_each(documents_folder, block_size):
    folder, texts = documents_folder
    expected = []
    for domain, documents in texts.items():
        for document in documents:
            for start in range(0, len(document) - 1, block_size):
                block = document[start : start + block_size + 1]
                expected.append((domain, block + [PADDING] * (block_size + 1 - len(block)), len(block) - 1))
    dataset = PackedDataset(folder, "train", block_size, "separate")
    assert len(dataset) == len(expected)
    assert dataset.batch(range(len(dataset))).tolist() == [block for _, block, _ in expected]
    assert dataset.domains_of(range(len(dataset))) == [domain for domain, _, _ in expected]
    assert dataset.targets(range(len(dataset))).tolist() == [targets for _, _, targets in expected]
    for domain, size in dataset.domains.items():
        own = [targets for name, _, targets in expected if name == domain]
        assert (size.samples, size.tokens) == (len(own), sum(own))
    some = np.random.default_rng(1).integers(0, len(dataset), 50)
    assert dataset.batch(some).tolist() == [expected[block][1] for block in some]
    with pytest.raises(IndexError):
        dataset.batch([0, len(dataset)])


@pytest.mark.parametrize("documents", ["packed", "separate"])
def test_no_token_is_a_target_twice(documents_folder, documents):
    folder, texts = documents_folder
    # Number the tokens, so that each tells where it is from.
    for name, own in texts.items():
        tokens = np.arange(sum(map(len, own)), dtype=np.uint16)
        tokens.tofile(folder / "train" / f"{name}.bin")
    dataset = PackedDataset(folder, "train", 8, documents)
    for name, own in texts.items():
        blocks = [b for b in range(len(dataset)) if dataset.domains_of([b]) == [name]]
        targets = dataset.batch(blocks)[:, 1:].ravel()
        targets = targets[targets != PADDING]
        starts = np.cumsum([0, *map(len, own)])[:-1]
        firsts = {int(start) for start, document in zip(starts, own, strict=True) if document}
        never = set(range(sum(map(len, own)))) - set(targets.tolist())
        assert len(set(targets.tolist())) == len(targets)
        if documents == "separate":
            assert never == firsts
        else:
            assert never <= {0, *range(len(targets) + 1, sum(map(len, own)))}


def test_an_index_of_many_documents_is_small():
    lengths = np.random.default_rng(0).integers(0, 3000, 10**6).astype(np.int32)
    tracemalloc.start()
    cut = SeparateCut(lengths, 1024)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 0.2 * len(lengths)  # bytes a document
    assert peak < 64e6  # the same for any number of documents
    blocks = -(-np.maximum(lengths.astype(np.int64) - 1, 0) // 1024)
    ends = np.cumsum(blocks)
    assert cut.samples == ends[-1]
    assert cut.targets == np.maximum(lengths.astype(np.int64) - 1, 0).sum()
    asked = np.random.default_rng(1).integers(0, cut.samples, 2000)
    document = np.searchsorted(ends, asked, side="right")
    offset = (asked - (ends[document] - blocks[document])) * 1024
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    first, targets = cut.spans(asked)
    assert np.array_equal(first, starts[document] + offset)
    assert np.array_equal(targets, np.minimum(1024, lengths[document] - 1 - offset))


def test_a_domain_without_tokens_needs_no_files(packed):
    manifest = json.loads((packed / "inheritune.json").read_text())
    for suffix in ("bin", "idx"):
        (packed / "val" / f"book.{suffix}").unlink()
    manifest["domains"]["book"]["val"] = {"documents": 0, "tokens": 0}
    (packed / "inheritune.json").write_text(json.dumps(manifest))
    dataset = PackedDataset(packed, "val", 8)
    assert dataset.domains["book"].samples == 0
    assert set(dataset.domains_of(range(len(dataset)))) == {"c4"}


def test_writer_and_reader_agree(tmp_path):
    documents = [[1, 2, 3], [65535], [4] * 1000]
    with DocumentWriter(tmp_path / "a.b", "uint16") as writer:
        for document in documents:
            writer.add(document)
    tokens, lengths = open_documents(tmp_path / "a.b")
    assert lengths.tolist() == [3, 1, 1000]
    assert tokens.tolist() == [token for document in documents for token in document]


@pytest.mark.parametrize(
    ("file", "keep", "told"),
    [
        ("train/c4.bin", 0.5, "bytes instead of"),
        ("train/c4.idx", 0.5, "bytes instead of"),
        ("train/c4.idx", 0.0, "not a Megatron index"),
        ("val/book.bin", None, "book.bin is missing"),
    ],
)
def test_damage_is_found_when_opened(packed, file, keep, told):
    path = packed / file
    if keep is None:
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=told):
        PackedDataset(packed, file.split("/")[0], 8)


def test_files_of_another_run_are_found(packed):
    with DocumentWriter(packed / "train" / "c4", "uint16") as writer:
        writer.add([1, 2, 3])
    with pytest.raises(UserError, match="holds 3 tokens of 1 documents, the manifest says"):
        PackedDataset(packed, "train", 8)


def test_content_hash_tells_texts_and_options_apart(corpus, tokenizer_dir, tmp_path, packed):
    def made(name: str, **options) -> str:
        prepare(PrepareArgs(corpus, tokenizer_dir, tmp_path / name, **{"val_fraction": 0.2, **options}))
        return content_sha256(tmp_path / name)

    first = content_sha256(packed)
    assert made("again") == first
    assert made("other split", val_fraction=0.3) != first
    with (corpus / "c4_sample.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert made("more text") != first


def test_not_packed_data(tmp_path):
    with pytest.raises(UserError, match="no packed data at"):
        load_packed_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not packed data"):
        load_packed_manifest(tmp_path)


def test_too_little_text_for_a_block(packed):
    with pytest.raises(UserError, match="too few for one sample of 1000000"):
        PackedDataset(packed, "val", 1_000_000)


@pytest.fixture
def checkpoint(tmp_path, tokenizer_dir):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shape = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 400, "padded_vocab_size": 400, "block_size": 16}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(shape))
    torch.save(GPT(Config(**shape)).state_dict(), folder / "lit_model.pth")
    (folder / "tokenizer.model").write_bytes((tokenizer_dir / "tokenizer.model").read_bytes())
    return folder


def check_fits(packed, checkpoint):
    check_fits_model(packed, checkpoint, load_config(checkpoint).padded_vocab_size)


def test_data_of_the_models_tokenizer_fits(packed, checkpoint):
    check_fits(packed, checkpoint)


def test_data_of_another_tokenizer_is_refused(packed, checkpoint, tokenizer_dir):
    manifest = json.loads((packed / "inheritune.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (packed / "inheritune.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another tokenizer"):
        check_fits(packed, checkpoint)


def test_vocabulary_too_large_for_the_model(packed, checkpoint):
    manifest = json.loads((packed / "inheritune.json").read_text())
    manifest["max_token_id"] = 400
    (packed / "inheritune.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"vocabulary too large for the model.*id 400.*400 embeddings"):
        check_fits(packed, checkpoint)
