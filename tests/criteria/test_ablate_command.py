"""``inheritune ablate`` on its recipe."""

import json
from pathlib import Path

import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import main
from inheritune_lit.studies import ablate
from inheritune_lit.train.metrics import read_metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "analysis" / "criteria-cpu.yaml"


@pytest.mark.skipif(not hasattr(ablate, "ablate"), reason="the command is not built yet")
def test_recipe_compares_criteria_and_continues(tmp_path, tokenizer_dir, capsys):
    make_checkpoint(tmp_path / "ref", tokenizer_dir, n_layer=4)
    data = make_packed(tmp_path / "data", tokenizer_dir)
    small = ["--train.max_tokens", "400", "--train.global_batch_size", "4", "--train.micro_batch_size", "4"]
    small += ["--train.lr_warmup_steps", "1", "--criteria", "[first,last]", "--seeds", "[3]", "--n", "1"]
    paths = ["--ref", str(tmp_path / "ref"), "--data", str(data), "--out_dir", str(tmp_path / "out")]
    call = ["ablate", "--config", str(RECIPE), *paths, *small]
    assert main(call) == 0
    assert "| first | 0 |" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "criteria.json").read_text())
    assert [one["layers"] for one in record["criteria"]] == [[0], [3]]
    last = read_metrics(tmp_path / "out" / "runs" / "layers-3-seed3" / "metrics.csv")
    assert record["runs"][1]["loss"] == pytest.approx(float(last[-1]["val_loss"]), abs=1e-6)
    assert record["runs"][1]["untrained"] == pytest.approx(float(last[0]["val_loss"]), abs=1e-6)
    assert main(call) == 0
    assert json.loads((tmp_path / "out" / "criteria.json").read_text()) == record
