"""A slice works unchanged in litgpt's own commands."""

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model


@pytest.fixture
def checkpoint(make_llama, tmp_path) -> Path:
    _, ref = make_llama(vocab_size=300, tie_word_embeddings=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    tokenizer.save(str(ref / "tokenizer.json"))
    (ref / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    return slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "slice")).folder


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_generate_and_chat(checkpoint, command):
    litgpt = Path(sys.executable).parent / "litgpt"
    options = ["--max_new_tokens", "5", "--precision", "32-true"]
    if command == "generate":
        options += ["--prompt", "the fox"]
    done = subprocess.run(
        [str(litgpt), command, str(checkpoint), *options],
        input="the fox\n\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = done.stdout + done.stderr
    assert ("the fox" if command == "generate" else "Time for inference") in text
