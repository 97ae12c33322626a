"""Bad input to ``inheritune pretrain``: one line, exit code 2, nothing written."""

import json
import shutil

import pytest
from train_command import pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.data.megatron import DocumentWriter
from inheritune_lit.io.manifest import write_manifest


@pytest.fixture
def refused(checkpoint, packed, tmp_path, capsys):
    """Runs the command with changes and checks the one line it ends with."""

    def check(told: str, *more: str, **changes: object) -> None:
        args = pretrain_command(checkpoint, packed, **{"out_dir": tmp_path / "run", **changes})
        assert main([*args, *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("inheritune: error: ")]
        assert errors == lines[-1:]
        assert told in errors[0]
        assert not (tmp_path / "run").exists()

    return check


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer__lr": ".nan"}, "optimizer.lr is nan"),
        ({"optimizer__beta2": 1.0}, "beta2 is 1.0"),
        ({"optimizer__weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"optimizer__eps": 0.0}, "eps is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"train__max_seq_length": 0}, "max_seq_length is 0"),
        ({"optimizer__betas": 0.9}, "betas"),
        ({"precision": "fp16"}, "fp16"),
        ({"optimizer__name": "adm"}, "optimizer.name is 'adm'"),
        ({"speed__fp8": "true"}, "fp8 needs a Hopper or Ada GPU"),
        ({"devices": 3}, "not a multiple of --train.micro_batch_size 2 times 3 devices"),
    ],
)
def test_arguments(refused, changes, told):
    refused(told, **changes)


def test_data_of_another_model(refused, packed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(packed, other)
    text = (other / "inheritune.json").read_text()
    digest = text.split('"tokenizer"')[1].split('"sha256": "')[1][:64]
    (other / "inheritune.json").write_text(text.replace(digest, "0" * 64))
    refused("another tokenizer", data=other)
    largest = text.split('"max_token_id": ')[1].split(",")[0]
    (other / "inheritune.json").write_text(text.replace(f'"max_token_id": {largest}', '"max_token_id": 400'))
    refused("vocabulary too large for the model", data=other)


def test_data_without_a_block(refused, packed, checkpoint, tmp_path):
    empty = tmp_path / "empty"
    shutil.copytree(packed, empty)
    manifest = json.loads((empty / "inheritune.json").read_text())
    for name, domain in manifest["domains"].items():
        with DocumentWriter(empty / "val" / name, manifest["dtype"]) as writer:
            writer.add([5] * 9)
        domain["val"] = {"documents": 1, "tokens": 9}
    (empty / "inheritune.json").write_text(json.dumps(manifest))
    refused("too few for one sample of 16", data=empty)


def test_out_dir_is_taken(refused, checkpoint, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("precious")
    refused("already holds files", "--dry_run", out_dir=taken)
    refused("is a file", out_dir=taken / "thesis.txt")
    refused("is not a folder", out_dir=taken / "thesis.txt" / "run")
    refused("holds a slice, not a run", out_dir=_as_slice(checkpoint))
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def _as_slice(checkpoint):
    write_manifest(checkpoint, "slice", {})
    return checkpoint
