"""The paper's comparisons at toy size: what begins with what, tables from the runs' own files, and going on."""

import json
import re
import statistics
from pathlib import Path

import pytest
from random_text import make_documents
from tiny import write_jsonl

from inheritune_lit.cli import main
from inheritune_lit.model.load import load_state
from inheritune_lit.studies.args import ReproduceArgs
from inheritune_lit.studies.replication import SCALES, TABLE_1, experiments, reproduce, write_page
from inheritune_lit.studies.runner import by_title, summarize

ONLY = ["scratch", "stacking", "hybrid", "mlp", "kd"]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path, list]:
    folder = tmp_path_factory.mktemp("replication")
    for seed, name in enumerate(("letters", "notes")):
        write_jsonl(folder / name / "all.jsonl", [{"text": text} for text in make_documents(300, seed)])
    out = folder / "out"
    write_jsonl(folder / "short" / "all.jsonl", [{"text": "a short text"}])
    results = reproduce(arguments(folder, out)).record.models
    return folder, out, results


def arguments(folder: Path, out_dir: Path) -> ReproduceArgs:
    source = [folder / "letters", folder / "notes"]
    return ReproduceArgs(source, out_dir=out_dir, scale="tiny", seeds=2, only=[*ONLY, "inheritune"])


def test_models_begin_with_what_the_grid_says(done):
    _, out, _ = done

    def state(name: str):
        return load_state(out / "runs" / name)

    reference, ours = state("reference-s1/final"), state("inheritune-start-s1")
    for name, tensor in ours.items():
        assert tensor.equal(reference[name]), name
    shallow, stacked = state("shallow-s1/final"), state("stacking-start-s1")
    hybrid = state("hybrid-start-s1")
    for name, tensor in stacked.items():
        first = re.sub(r"\.h\.\d+\.", ".h.0.", name)
        assert tensor.equal(shallow[first]), name
        assert hybrid[name].equal(reference[first]), name
    mlp = state("mlp-start-s1")
    for name, tensor in mlp.items():
        taken = ".mlp." in name or "norm" in name or ".h." not in name
        assert tensor.equal(reference[name]) is taken or tensor.eq(1).all(), name
    assert not state("scratch-start-s1")["lm_head.weight"].equal(state("scratch-start-s2")["lm_head.weight"])


def test_the_table_is_that_of_the_runs(done):
    _, out, results = done
    text = (out / "replication.md").read_text()
    losses = {}
    for seed in (1, 2):
        for name in ("inheritune", "scratch"):
            final = json.loads((out / "runs" / f"{name}-s{seed}" / "final" / "inheritune.json").read_text())
            losses[name, seed] = final["val_loss"]
    table = text.partition("## Table 1")[2].partition("##")[0]
    row = next(line for line in table.splitlines() if line.startswith("| from scratch |"))
    scratch = [losses["scratch", seed] for seed in (1, 2)]
    gaps = [losses["scratch", seed] - losses["inheritune", seed] for seed in (1, 2)]
    assert f"{statistics.mean(scratch):.3f} ± {statistics.stdev(scratch):.3f}" in row
    assert f"{statistics.mean(gaps):+.3f} ± {statistics.stdev(gaps):.3f}" in row
    models = by_title(results, TABLE_1)
    assert summarize(models["from scratch"], models["Inheritune"]).paired == 2
    rank = json.loads((out / "analysis" / "reference" / "analysis.json").read_text())
    assert rank["model"]["n_layer"] == 3 and "reference: " in text.partition("## Figure 9")[2]
    for figure in re.findall(r"\]\(([^)]+)\)", text):
        assert (out / figure).stat().st_size > 10_000


def test_comparisons_without_a_model_of_their_own_are_left_out(done, tmp_path):
    _, _, results = done
    headings = {}
    for names in (("inheritune", "scratch"), ("inheritune", "scratch", "mlp")):
        shown = [each for each in results if each.name.rpartition("-")[0] in names]
        write_page(tmp_path, "tiny", shown)
        headings[names[-1]] = re.findall("^## (.+)$", (tmp_path / "replication.md").read_text(), re.MULTILINE)
    assert [len(found) for found in headings.values()] == [1, 2], headings


def test_the_same_command_keeps_what_is_done(done, capsys):
    folder, out, results = done
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("lit_model.pth")}
    (out / "replication.md").unlink()
    again = reproduce(arguments(folder, out))
    assert again.record.models == results and str(again) == f"wrote {out}/replication.md"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("lit_model.pth")} == weights
    assert (out / "replication.md").is_file()


@pytest.mark.parametrize("scale", list(SCALES))
def test_the_grid_is_trained_in_an_order_that_works(scale):
    grid, seen = experiments(SCALES[scale], Path("out")), set()
    for one in grid:
        after = {other.name for other in grid if one.needs(other)}
        assert seen.issuperset(after)
        # Whoever starts from another model or learns from one needs it.
        assert bool(after) == (one.start.init != "random" or one.training.distill.active)
        assert not one.training.distill.active or "reference-s1" in after
        seen.add(one.name)
    assert len(seen) == len(grid)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("{folder}/nowhere", "no text at"),
        ("{folder}/letters/nothing --out_dir {folder}/none", "no text at"),
        ("{folder}/letters --only inherit", "--only inherit is not a model of the grid; give some of reference"),
        ("{folder}/letters --seeds 1 --baseline_seeds 2", "--seeds 1 --baseline_seeds 2"),
        ("{folder}/short --scale small --out_dir {folder}/other", "makes no tokenizer of 2,048 pieces, give more text"),
        ("{folder}/letters --scale small", "was started with scale 'tiny', not 'small'; use the old value"),
        ("{folder}/letters --out_dir {folder}/letters", "already holds files; give another --out_dir"),
    ],
)
def test_bad_input_is_one_line(done, arguments, complaint, capsys):
    folder, out, _ = done
    words = arguments.format(folder=folder).split()
    if "--out_dir" not in words:
        words += ["--out_dir", str(out)]
    assert main(["reproduce", *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert complaint in error[-1] and all(line.startswith("reproduce:") for line in error[:-1])
