"""Every tokenizer file travels from the reference through the slice into the export."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.export import export
from inheritune_lit.checkpoint.folder import TOKENIZER_FILES
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest

TURN = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
TEMPLATES = {"default": TURN, "tool_use": "tools!" + TURN}
MESSAGES = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]


def save_tokenizer(folder: Path, templates: dict[str, str] | str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the fox jumps"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=templates)
    fast.save_pretrained(folder)
    return fast


def test_files_are_copied_byte_for_byte(make_llama, tmp_path):
    _, ref = make_llama(vocab_size=300)
    names = [name.replace("*", "tool_use") for name in TOKENIZER_FILES]
    save_tokenizer(ref, TURN)
    (ref / "tokenizer.model").write_bytes(b"not a model of SentencePiece, so that tokenizer.json is taken")
    for number, name in enumerate(names):
        (ref / name).parent.mkdir(exist_ok=True)
        content = (ref / name).read_bytes() if (ref / name).is_file() else b"{}" if name.endswith(".json") else b""
        (ref / name).write_bytes(content + b"\n" * number)
    stored = {name: (ref / name).read_bytes() for name in names}
    out = slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out")).folder
    hf = export(ExportArgs(out, tmp_path / "hf")).folder
    for folder in (out, hf):
        assert {name: (folder / name).read_bytes() for name in names} == stored
    assert set(names) <= set(read_manifest(out)["copied"])


@pytest.mark.parametrize("templates", [TURN, TEMPLATES], ids=["one", "several"])
def test_chat_templates_work_after_export(make_llama, tmp_path, templates):
    _, ref = make_llama(vocab_size=300)
    original = save_tokenizer(ref, templates)
    assert (ref / "chat_template.jinja").is_file()
    hf = export(
        ExportArgs(slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out")).folder, tmp_path / "hf")
    ).folder
    tokenizer = AutoTokenizer.from_pretrained(hf)
    assert tokenizer("the fox")["input_ids"] == original("the fox")["input_ids"]
    for name in templates if isinstance(templates, dict) else [None]:
        text = tokenizer.apply_chat_template(MESSAGES, chat_template=name, tokenize=False)
        assert text == original.apply_chat_template(MESSAGES, chat_template=name, tokenize=False)
        assert "[user] the fox" in text
        assert text.startswith("tools!") == (name == "tool_use")


def test_a_template_that_links_out_of_the_folder(make_llama, tmp_path):
    _, ref = make_llama()
    (tmp_path / "secret").write_text("mine")
    (ref / "additional_chat_templates").mkdir()
    (ref / "additional_chat_templates/tool_use.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="symlink out of its folder"):
        slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out"))
