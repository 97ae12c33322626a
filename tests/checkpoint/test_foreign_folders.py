"""Checkpoint folders that others made: links, pipes, names and lineages that lead elsewhere are refused."""

import json
import os
from pathlib import Path

import pytest
import yaml
from foreign import refused, slice_of

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.export import export
from inheritune_lit.checkpoint.folder import copy_files
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_model


def test_links_that_lead_outside_are_refused_by_all(make_llama, tmp_path):
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "a.jinja").write_text("SECRET")
    for link, target in (
        ("chat_template.jinja", secret / "a.jinja"),
        ("added_tokens.json", Path("../secret/a.jinja")),
        ("additional_chat_templates", secret),
        ("inheritune.json", secret / "a.jinja"),
        ("vocab.json", tmp_path / "lit2" / "x"),
        ("notes", Path("notes")),
        ("merges.txt", Path("merges.txt")),
    ):
        (lit / link).unlink(missing_ok=True)
        (lit / link).symlink_to(target)
        calls = (
            lambda: export(ExportArgs(lit, tmp_path / "hf")),
            lambda: load_model(lit),
            lambda: slice_of(lit, tmp_path / "out"),
            lambda: copy_files(lit, secret),
        )
        for call in calls:
            refused(call, "symlink", link)
        (lit / link).unlink()
    (lit / "own.jinja").write_text("{{ messages }}")
    (lit / "chat_template.jinja").symlink_to("own.jinja")
    export(ExportArgs(lit, tmp_path / "hf"))
    assert (tmp_path / "hf/chat_template.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "hf/chat_template.jinja").is_symlink()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_pipes_do_not_block(make_llama, tmp_path, file):
    _, ref = make_llama()
    (ref / file).unlink(missing_ok=True)
    os.mkfifo(ref / file)
    refused(lambda: slice_of(ref, tmp_path / "out"), str(ref))


def test_names_from_files_stay_in_their_place(make_llama, tmp_path, monkeypatch, caplog):
    """A name in ``model_config.yaml`` chooses neither another folder nor the front matter of a model card."""
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    path, fields = lit / "model_config.yaml", yaml.safe_load((lit / "model_config.yaml").read_text())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (5, "../../../evil", "/evil", "a\nlicense: mit\x1b[31m", "..", "", "\udcff", "x" * 500):
        path.write_text(yaml.safe_dump(fields | {"name": str(name), "hf_config": {"org": name, "name": name}}))
        out = slice_model(SliceArgs(str(lit), n=1)).folder
        assert out.resolve().is_relative_to(tmp_path / "here/checkpoints")
        export(ExportArgs(lit, tmp_path / "hf"))
        card = (tmp_path / "hf/README.md").read_text()
        assert "\nlicense" not in card and "\x1b" not in card
        for folder in (out, tmp_path / "hf"):
            os.rename(folder, tmp_path / f"done{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize(
    "manifest",
    [
        {"kind": "slice"},
        {"kind": "slice", "reference": None, "layers": None},
        {"kind": "slice", "reference": {"org": 1}, "layers": "x"},
        {"kind": "run", "tokens": "many", "parent": {"kind": "slice"}},
        {"kind": "run", "parent": [1]},
        {
            "kind": "run",
            "tokens": 5,
            "parent": {"kind": "slice", "reference": {"org": "a", "name": "b"}, "layers": [0, 9]},
        },
    ],
)
def test_damaged_lineage(make_llama, tmp_path, manifest):
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    (lit / "inheritune.json").write_text(json.dumps(manifest))
    try:
        export(ExportArgs(lit, tmp_path / "hf"))
    except UserError as error:
        assert "inheritune.json" in str(error)


def test_configurations_of_litgpt_itself_are_read(tmp_path):
    """Every model of litgpt's own table, as litgpt writes it."""
    from litgpt.config import configs
    from litgpt.utils import save_config

    from inheritune_lit.checkpoint.config import load_lit_config

    for entry in configs:
        config = Config(**entry)
        save_config(config, tmp_path)
        assert load_lit_config(tmp_path) == config
