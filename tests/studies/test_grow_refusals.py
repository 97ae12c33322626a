"""Bad input to ``inheritune grow``: one line, exit code 2, nothing written, nothing trained."""

import json
import shutil

import pytest
from tiny import make_checkpoint

from inheritune_lit.cli import main
from inheritune_lit.train.loop import Trainer


@pytest.fixture
def refused(command, tmp_path, capsys, monkeypatch):
    """Runs the command with changes and checks the one line it ends with."""
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("something is trained"))

    def check(told: str, **changes: object) -> None:
        out_dir = changes.setdefault("out_dir", tmp_path / "grown")
        before = sorted(out_dir.rglob("*"))
        assert main(command(**changes)) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("inheritune: error: ")]
        assert errors == lines[-1:]
        assert told in errors[0]
        assert sorted(out_dir.rglob("*")) == before

    return check


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grow_by": 0}, "--grow_by is 0; give 1 or more"),
        ({"n": 5}, "--n is 5; the reference has 4 layers"),
        ({"max_layers": 6}, "--max_layers is 6"),
        ({"grow_by": 3}, "grows past the reference's 4 layers"),
        ({"new_layers": "last:5"}, "--new_layers last:5 asks for 5 layers"),
        ({"margin": -0.1}, "--margin is -0.1; give the nats"),
        ({"margin": ".nan"}, "--margin is nan"),
        ({"max_flops": 1e6}, "the first round alone takes 1.34e+08"),
        ({"optimizer_state": "keep"}, "--optimizer_state; every round of `inheritune grow` starts with"),
        ({"train__max_seq_length": 33}, "max_seq_length is 33"),
        ({"train__lr_warmup_steps": 6}, "leave no step for the cosine schedule"),
        ({"eval__max_iters": 1, "train__micro_batch_size": 1}, "1 validation sample; the comparison"),
        ({"seed": 2**64 - 2}, f"give 0 to {2**64 - 3}"),
        ({"ref": "nowhere"}, "nowhere"),
        ({"data": "nowhere"}, "no packed data at nowhere"),
        ({"optimizer__name": "nowhere.Adam"}, "--optimizer.name is 'nowhere.Adam'"),  # before the reference is measured
    ],
)
def test_arguments(refused, changes, told):
    refused(told, **changes)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ({"n_embd": 16}, "has n_embd 16, the reference tiny 32"),
        ({"padded_vocab_size": 512, "vocab_size": 512}, "has padded_vocab_size 512, the reference tiny 400"),
        ({"intermediate_size": 40}, "has intermediate_size 40"),
        ({"norm_class_name": "LayerNorm"}, "has norm_class_name LayerNorm"),
        ({"n_layer": 5}, "has 5 layers"),
        ({"tied": True}, "ties its head to the embeddings"),
    ],
)
def test_a_start_that_is_not_of_the_reference(refused, tmp_path, tokenizer_dir, shape, told):
    make_checkpoint(tmp_path / "start", tokenizer_dir, **shape)
    refused(told, initial_checkpoint_dir=tmp_path / "start", n=None)


def test_a_start_and_a_number_of_layers(refused, tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "start", tokenizer_dir)
    refused("--n 2 and --initial_checkpoint_dir both", initial_checkpoint_dir=tmp_path / "start")


def test_a_reference_that_cannot_be_measured_on_the_data(refused, packed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(packed, other)
    text = (other / "inheritune.json").read_text()
    digest = text.split('"tokenizer"')[1].split('"sha256": "')[1][:64]
    (other / "inheritune.json").write_text(text.replace(digest, "0" * 64))
    refused("another tokenizer", data=other)
    manifest = json.loads(text)
    (other / "inheritune.json").write_text(json.dumps({**manifest, "max_token_id": 400}))
    refused("vocabulary too large for the model", data=other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"margin": 0.5}, "was started with margin 0.0, not 0.5"),
        ({"grow_by": 2}, "was started with grow_by 1, not 2"),
        ({"train__max_steps": 7}, "was started with train.max_steps 6, not 7"),
        ({"n": 1}, "was started with start_layers [0, 1], not [0]"),
    ],
)
def test_other_settings_than_it_was_started_with(refused, undisturbed, changes, told):
    refused(told, **{"out_dir": undisturbed, "margin": 0, **changes})


def test_an_earlier_version_kept_the_optimizer(refused, undisturbed, tmp_path):
    """That cannot go on; what it started with a fresh optimizer in every round does."""
    manifest = json.loads((undisturbed / "inheritune.json").read_text())
    assert manifest["settings"]["optimizer_state"] == "reset"
    manifest["settings"]["optimizer_state"] = "keep"
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "inheritune.json").write_text(json.dumps(manifest))
    refused("was started with optimizer_state 'keep', not 'reset'", out_dir=tmp_path / "kept", margin=0)


def test_another_reference_than_it_was_started_with(refused, undisturbed, tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "other", tokenizer_dir, n_layer=4)
    refused("was started with reference.", out_dir=undisturbed, margin=0, ref=tmp_path / "other")


def test_out_dir_is_taken(refused, tmp_path, undisturbed):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("precious")
    refused("already holds files", out_dir=taken)
    refused("holds a run, not a growth", out_dir=undisturbed / "round-01-2l")
