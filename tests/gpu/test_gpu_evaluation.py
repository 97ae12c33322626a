"""Scores and texts on a GPU: as on a CPU in fp32, close to it in bfloat16."""

import json

import pytest
import torch
from gpu_steps import DEVICE, SHAPE

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.evaluation.generation import GenerationSettings, generate
from inheritune_lit.evaluation.held_out import block_losses
from inheritune_lit.evaluation.score_cache import Ranks
from inheritune_lit.model.attention import install_plans


@pytest.fixture
def score(build, packed):
    """Mean loss and losses of single samples of the held-out text."""

    def score(dtype, device):
        model = build(dtype, device)
        model.max_seq_length = 64
        scored = block_losses(model, PackedDataset(packed, "val", 64), 8, ranks=Ranks(device=torch.device(device)))
        return torch.tensor(scored.losses) / torch.tensor(scored.targets)

    return score


def test_held_out_losses_of_single_samples(score):
    expected = score(torch.float32, "cpu")
    assert torch.allclose(score(torch.float32, DEVICE), expected, atol=1e-3)
    low = score(torch.bfloat16, DEVICE)
    assert torch.allclose(low, expected, atol=3e-2)
    assert low.mean().item() == pytest.approx(expected.mean().item(), abs=5e-3)  # rounding goes both ways


def test_generated_text_is_the_likeliest_token_again_and_again(build):
    """With a key-value cache on the GPU, against whole forward passes on the CPU, for prompts of several lengths."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 400, (length,), generator=draw).tolist() for length in (5, 17, 2, 40)]
    model = build(torch.float32, DEVICE)
    install_plans(model)
    settings = GenerationSettings.of({"max_gen_toks": 24})
    made = generate(model, prompts, settings, None, lambda ids: "", [0] * 4)
    reference = build()
    for prompt, new in zip(prompts, made, strict=True):
        assert len(prompt) + len(new) <= SHAPE["block_size"]
        with torch.no_grad():
            logits_TV = reference(torch.tensor([prompt + new]))[0]
        chosen = logits_TV[len(prompt) - 1 : -1]
        best = chosen.max(dim=1).values
        assert (best - chosen[torch.arange(24), torch.tensor(new)]).max() < 1e-3  # TF32 may break ties otherwise


def test_the_command_scores_alike_in_both_types(checkpoint, packed, tmp_path):
    pytest.importorskip("lm_eval")
    from inheritune_lit.cli import main

    losses = {}
    for dtype in ("float32", "bfloat16"):
        size = ["--max_seq_length", "64", "--dtype", dtype, "--out_dir", str(tmp_path / dtype)]
        assert main(["eval", str(checkpoint), "--val_data", str(packed), *size]) == 0
        (scored,) = json.loads((tmp_path / dtype / "results.json").read_text())["checkpoints"]
        losses[dtype] = scored["held_out"]["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=1e-2)
