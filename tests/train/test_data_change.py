"""A run whose data, mixture or documents option changes on the way: refused by name, or continued and recorded."""

import itertools
import json
import os
import shutil
import signal
from collections import Counter

import pytest
from train_command import WEIGHTS, kill_at_step, losses_of, pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.sampler import CYCLE, MixtureSampler
from inheritune_lit.train import loop


def stop_after_8_steps(args: list[str]) -> None:
    original = loop.Trainer.train_step

    def step(self):
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "train_step", step)
        assert main(args) == 0


@pytest.fixture
def command(checkpoint, mixed, tmp_path):
    """Arguments of a weighted run of 30 steps, with changes."""

    def build(**changes) -> list[str]:
        given = {"mixture__weights": json.dumps(WEIGHTS), "out_dir": tmp_path / "run", "packed": mixed, **changes}
        return pretrain_command(checkpoint, **given)

    return build


@pytest.fixture
def stopped(command):
    """The same arguments, and the run stopped after 8 steps."""
    stop_after_8_steps(command())
    return command


@pytest.fixture
def more(mixed, tmp_path, prepare_domains):
    """The same data and one more domain."""
    return prepare_domains(tmp_path / "more", {"code": 60, "talk": 25, "wiki": 10, "zines": 15})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mixture__weights": "{code: 1, talk: 3, wiki: 6}"}, "mixture.code 0.2, not 0.1; mixture.wiki 0.5, not 0.6"),
        ({"mixture__weights": "proportional"}, "mixture {'code': 0.2, 'talk': 0.3, 'wiki': 0.5}, not 'proportional'"),
        ({"documents": "separate"}, "documents 'packed', not 'separate'"),
        ({"packed": "more"}, "no domain 'zines'"),
    ],
)
def test_a_change_is_refused_and_named(stopped, more, tmp_path, capsys, changes, told):
    before = (tmp_path / "run" / "inheritune.json").read_bytes()
    changes = {name: more if value == "more" else value for name, value in changes.items()}
    assert main(stopped(**changes)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"was started with {told}; use the old data" in line
    assert "--allow_data_change true" in line
    assert (tmp_path / "run" / "inheritune.json").read_bytes() == before


def test_text_that_changed_is_named(stopped, tmp_path, prepare_domains, capsys):
    other = prepare_domains(tmp_path / "other", {"code": 60, "talk": 26})
    assert main(stopped(packed=other, mixture__weights="{code: 4, talk: 6}")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "domain 'wiki', which is gone; other text in domain 'talk' (" in line
    assert "'code'" not in line


def test_data_may_move(stopped, mixed, tmp_path):
    moved = shutil.copytree(mixed, tmp_path / "moved")
    assert main(stopped(packed=moved)) == 0
    assert main(stopped(out_dir=tmp_path / "whole")) == 0
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_other_settings_cannot_change_with_the_data(stopped, more, capsys):
    assert main([*stopped(packed=more, optimizer__lr=1e-3), "--allow_data_change"]) == 2
    assert "started with optimizer.lr 0.003, not 0.001" in capsys.readouterr().err.splitlines()[-1]


def test_an_allowed_change_goes_on_and_is_recorded(stopped, mixed, more, tmp_path, seen, capsys):
    weights = {"code": 0.1, "talk": 0.2, "wiki": 0.3, "zines": 0.4}
    old_data, data = PackedDataset(mixed, "train", 16), PackedDataset(more, "train", 16)
    old = MixtureSampler(_domain_blocks(old_data), 1337, {name: round(w * CYCLE) for name, w in WEIGHTS.items()})
    args = stopped(packed=more, mixture__weights=json.dumps(weights), allow_data_change="true")
    assert main(args) == 0
    told = capsys.readouterr()
    assert "continues after step 8 of 30" in told.err
    assert "data changed at sample 32, before: no domain 'zines'; mixture.code 0.2, not 0.1" in told.err
    # Blocks before and after, as (domain, number in it): each domain goes on in its own permutation.
    before = _named(old_data, old.blocks(range(32)))
    after = _named(data, seen)
    assert len(after) == 88
    for name, size in data.domains.items():
        own = [pair for pair in before + after if pair[0] == name]
        for start in range(0, len(own), size.samples):
            epoch = own[start : start + size.samples]
            assert len(set(epoch)) == len(epoch)
    assert {name for name, _ in after} == set(weights)
    run = json.loads((tmp_path / "run" / "final" / "inheritune.json").read_text())["run"]
    (change,) = run["data_changes"]
    assert change["sample"] == 32
    assert change["drawn"] == dict(Counter(name for name, _ in before))
    assert change["was"]["mixture"] == WEIGHTS
    assert run["settings"]["mixture"] == weights
    assert main(args) == 0  # finished
    assert main(stopped(allow_data_change="true")) == 2
    assert "started with domain 'zines', which is gone" in capsys.readouterr().err.splitlines()[-1]


def test_a_changed_run_killed_again_continues_bit_for_bit(stopped, more, tmp_path):
    changes = {"packed": more, "mixture__weights": "uniform", "allow_data_change": "true"}
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    assert main(stopped(**changes, out_dir=tmp_path / "whole")) == 0
    kill_at_step(17, stopped(**changes))
    again = {name: value for name, value in changes.items() if name != "allow_data_change"}
    assert main(stopped(**again)) == 0  # the change is made, it needs no leave any more
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_a_budget_that_the_new_data_has_used_up_is_refused(command, tmp_path, prepare_domains, capsys):
    changes = {"mixture__weights": "proportional", "train__max_steps": None, "train__epochs": 1}
    stop_after_8_steps(command(**changes))
    less = prepare_domains(tmp_path / "less", {"code": 10})
    blocks = len(PackedDataset(less, "train", 16))
    assert main([*command(**changes, packed=less), "--allow_data_change"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"has done 8 steps, the budget makes {blocks // 4} of the new data" in told


def test_a_change_without_its_state_is_refused(stopped, more, tmp_path, capsys):
    changes = {"packed": more, "mixture__weights": "uniform", "allow_data_change": "true"}
    kill_at_step(12, stopped(**changes))
    (tmp_path / "run" / "state.pth").unlink()
    assert main(stopped(**changes)) == 2
    assert "no state from sample 32 on, where its data was changed" in capsys.readouterr().err.splitlines()[-1]


def _domain_blocks(data: PackedDataset) -> dict[str, int]:
    return {name: size.samples for name, size in data.domains.items()}


def _named(data: PackedDataset, blocks) -> list[tuple[str, int]]:
    """Blocks as (domain, number in the domain)."""
    starts = dict(zip(data.domains, itertools.accumulate(_domain_blocks(data).values(), initial=0), strict=False))
    names = data.domains_of(blocks)
    return [(name, int(block) - starts[name]) for name, block in zip(names, blocks, strict=True)]
