"""A tiny checkpoint with opinions, as a Hugging Face folder that transformers and the adapter both read."""

from pathlib import Path

import pytest
from random_models import build_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def hf_checkpoint(tmp_path_factory) -> Path:
    """A LLaMA with a context of 768 tokens and a byte-level tokenizer that puts <s> before texts when asked to."""
    folder = tmp_path_factory.mktemp("hf") / "tiny-llama"
    settings = {"vocab_size": 600, "max_position_embeddings": 768, "num_hidden_layers": 2, "initializer_range": 0.2}
    build_llama(seed=5, **settings, bos_token_id=0, eos_token_id=1).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([path.read_text() for path in Path(__file__).parent.parent.glob("*.py")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return folder
