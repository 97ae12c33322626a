"""The commands of README, tutorial and docs/commands.md run, on tiny models instead of the documented ones."""

import re
import shlex
import shutil

import pyarrow as pa
from hub_server import running_hub
from page import ROOT, SMALLER, bash_lines
from pyarrow import parquet
from random_models import build_llama
from random_text import make_documents
from tiny import make_checkpoint, make_packed, write_jsonl

from inheritune_lit.cli import main

PAGE = (ROOT / "docs" / "commands.md").read_text()
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()


def test_every_command_of_the_page_runs(tmp_path, tokenizer_dir, rows_dir, monkeypatch, capsys):
    make_checkpoint(tmp_path / "smollm2", tokenizer_dir, n_layer=30, block_size=2048)
    for seed, domain in enumerate(("arxiv", "c4", "wikipedia")):
        texts = make_documents(150, seed)
        write_jsonl(tmp_path / "redpajama-sample" / f"{domain}_sample.jsonl", [{"text": text} for text in texts])
    (tmp_path / "rows").symlink_to(rows_dir)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```\n\$ (inheritune .*?[^\\])\n", PAGE, flags=re.MULTILINE | re.DOTALL)
    commands = [shlex.split(block.replace("\\\n", " "))[1:] for block in blocks]
    assert [command[0] for command in commands] == [
        *("plan", "plan", "init", "slice", "search", "prepare", "pretrain", "teach", "eval", "export"),
        *("analyze", "grow", "ablate", "reproduce", "report", "references", "recipes"),
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)
    kept = ("checkpoints/smollm2-15l", "data/redpajama-sample", "runs/smollm2-15l/final", "scores", "hf/smollm2-15l")
    for made in kept:
        assert (tmp_path / made / "inheritune.json").is_file()
    for planned in ("runs/grow", "analysis", "data/teacher"):
        assert not (tmp_path / planned).exists()


def test_the_tutorial_runs(tmp_path, tokenizer_dir, rows_dir, monkeypatch, capsys):
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        remote = tmp_path / "remote"
        build_llama(vocab_size=400, num_hidden_layers=26, max_position_embeddings=256).save_pretrained(remote)
        for file in tokenizer_dir.iterdir():
            shutil.copy(file, remote)
        hub.repositories["openlm-research/open_llama_3b"] = remote
        for seed, domain in enumerate(("arxiv", "c4")):
            rows = [{"text": text} for text in make_documents(40, seed)]
            write_jsonl(tmp_path / "text" / f"{domain}_sample.jsonl", rows)
        hub.repositories["togethercomputer/RedPajama-Data-1T-Sample"] = tmp_path / "text"
        for name, target in (("recipes", ROOT / "recipes"), ("rows", rows_dir)):
            (tmp_path / name).symlink_to(target)
        monkeypatch.chdir(tmp_path)
        lines = [line for line in bash_lines(TUTORIAL) if line.startswith("inheritune")]
        assert [line.split()[1] for line in lines] == [
            *("references", "plan", "slice", "prepare", "pretrain", "eval", "report", "export")
        ]
        for line in lines:
            name = line.split()[1]
            # Not all of the suite's rows are here.
            line = line.replace("--suite paper-table5", "--tasks piqa,sciq")
            command = shlex.split(f"{line} {SMALLER.get(name, '')}")[1:]
            assert main(command) == 0, (command, capsys.readouterr().err)
    run = tmp_path / "runs" / "paper-openllama-3b-13l-1b"
    assert (run / "scores" / "results.md").is_file() and (run / "hf" / "model.safetensors").is_file()


def test_the_readmes_quickstart_runs(tmp_path, tokenizer_dir, rows_dir, monkeypatch, capsys):
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        remote = tmp_path / "remote"
        build_llama(vocab_size=400, num_hidden_layers=30, max_position_embeddings=256).save_pretrained(remote)
        for file in tokenizer_dir.iterdir():
            shutil.copy(file, remote)
        hub.repositories["HuggingFaceTB/SmolLM2-135M"] = remote
        rows = [{"text": text, "meta": {"pile_set_name": "Pile-CC"}} for text in make_documents(400, 1)]
        (tmp_path / "pile" / "data").mkdir(parents=True)
        parquet.write_table(
            pa.Table.from_pylist(rows), tmp_path / "pile" / "data" / "train-00000-of-00001-4746.parquet"
        )
        hub.repositories["NeelNanda/pile-10k"] = tmp_path / "pile"
        for name, target in (("recipes", ROOT / "recipes"), ("rows", rows_dir)):
            (tmp_path / name).symlink_to(target)
        monkeypatch.chdir(tmp_path)
        lines = [line for line in bash_lines(README) if line.startswith("inheritune")]
        order = ["slice", "prepare", "search", "slice", "pretrain", "eval", "export"]
        assert [line.split()[1] for line in lines] == order
        smaller = SMALLER | {"eval": "--data_dir rows --val_blocks 4 --limit 4"}
        for line in lines:
            capsys.readouterr()
            command = shlex.split(f"{line} {smaller.get(line.split()[1], '')}")[1:]
            assert main(command) == 0, (command, capsys.readouterr().err)
            if command[0] == "eval":
                table = capsys.readouterr().out
    assert "| smollm2-30l | 30 |" in table and "| smollm2-15l | 15 |" in table


def test_the_other_commands_of_the_page_run(tmp_path, tokenizer_dir, rows_dir, monkeypatch, capsys):
    lines = [line for line in bash_lines(PAGE) if line.startswith("inheritune")]
    lines += re.findall(r"`(inheritune (?:teach|report|plan) [^`]*)`", PAGE)
    more = {
        "grow": "--n 2 --grow_by 1 --max_layers 3 --train.max_steps 2 --train.max_seq_length 16 "
        "--train.global_batch_size 4 --train.lr_warmup_steps 1 --eval.max_iters 1",
        "analyze": "--num_sequences 3 --seq_length 16",
        "eval": "--tasks piqa,sciq --data_dir rows --limit 4",
        "teach": "--max_seq_length 16",
    }
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        for repository, layers in (("openlm-research/open_llama_3b", 4), ("HuggingFaceTB/SmolLM2-135M", 3)):
            remote = tmp_path / "remote" / repository
            build_llama(vocab_size=400, num_hidden_layers=layers, max_position_embeddings=256).save_pretrained(remote)
            for file in tokenizer_dir.iterdir():
                shutil.copy(file, remote)
            hub.repositories[repository] = remote
        write_jsonl(tmp_path / "text" / "c4.jsonl", [{"text": text} for text in make_documents(60, 1)])
        (tmp_path / "data").mkdir()
        make_packed(tmp_path / "data" / "redpajama-1b", tokenizer_dir)
        (tmp_path / "rows").symlink_to(rows_dir)
        monkeypatch.chdir(tmp_path)
        make_checkpoint(tmp_path / "start", tokenizer_dir, block_size=512)
        for run in ("a", "b"):
            few = f"--train.max_steps 2 --seed {ord(run)} {SMALLER['pretrain'].replace('--train.epochs 1', '')}"
            asked = f"pretrain --initial_checkpoint_dir start --data data/redpajama-1b --out_dir runs/{run} {few}"
            assert main(shlex.split(asked)) == 0, capsys.readouterr().err
        names = []
        for line in lines:
            names.append(line.split()[1])
            if "--fetch_data" in line or "--watch" in line:
                continue  # docs/offline.md's test; a watch that does not end
            command = shlex.split(f"{line.replace('--suite paper-table5', '')} {more.get(names[-1], '')}")[1:]
            assert main(command) == 0, (command, capsys.readouterr().err)
    assert sorted(set(names)) == ["analyze", "eval", "grow", "plan", "report", "teach"]
    for made in ("runs/grow/grow.md", "analysis/analysis.json", "results/results.md", "data/teacher/inheritune.json"):
        assert (tmp_path / made).is_file()


def test_transcripts_that_are_the_same_everywhere_are_what_comes_out(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^```\n\$ (inheritune .*)\n((?:.*\n)*?)```", PAGE, flags=re.MULTILINE)
    exact = ("plan", "init", "references", "recipes")
    shown = [(command, text) for command, text in found if command.split()[1] in exact]
    assert len(shown) == 5
    for command, text in shown:
        assert main(shlex.split(command)[1:]) == 0
        printed = capsys.readouterr().out
        if command.split()[1] in ("references", "recipes"):  # how many more there are is in the text behind
            more = re.search(re.escape(text) + r"```\nand (\d+) more", PAGE)
            printed, rest = (
                "".join(printed.splitlines(True)[: text.count("\n")]),
                printed.count("\n") - text.count("\n"),
            )
            assert int(more[1]) == rest
        assert printed == text
