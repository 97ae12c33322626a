"""Advice on n against real slices and the paper's numbers."""

from dataclasses import replace

import pytest
from synthetic_analysis import make_analysis

from inheritune_lit.analysis.args import AdviceArgs
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.reference import open_reference
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import load_model
from inheritune_lit.planning.advise import advise


@pytest.mark.parametrize(
    ("family", "settings"),
    [("make_llama", {}), ("make_llama", {"tie_word_embeddings": True}), ("make_gpt2", {})],
    ids=["llama", "llama-tied", "gpt2"],
)
def test_parameters_are_those_of_slices(family, settings, request, tmp_path):
    model, folder = request.getfixturevalue(family)(**settings)
    depth = model.config.num_hidden_layers
    advice = advise(make_analysis(depth), open_reference(folder, "local"), AdviceArgs(max_seq_length=16))
    assert [row.n for row in advice.depths] == list(range(1, depth + 1))
    for row in advice.depths:
        out_dir = slice_model(SliceArgs(str(folder), n=row.n, out_dir=tmp_path / f"n{row.n}")).folder
        assert row.job.model.parameters == read_manifest(out_dir)["parameters"]["total"]
        assert row.job.model.parameters == sum(parameter.numel() for parameter in load_model(out_dir).parameters())
    assert advice.depths[-1].job.model.parameters == model.num_parameters()


def test_hours_are_those_of_the_paper_notes(tmp_path):
    (tmp_path / "config.json").write_text(OPENLLAMA_3B)
    reference = open_reference(tmp_path, "openlm-research")
    training = AdviceArgs(max_tokens=8_000_000_000, gpu="a100-80gb", max_seq_length=2048)
    row = advise(make_analysis(26), reference, training).depths[12]
    assert (row.n, row.job.model.parameters) == (13, 1_815_638_400)
    # 10.79 GFLOP a token and a dense bf16 peak of 312 TFLOP/s, half of it reached.
    assert row.hours == pytest.approx(8e9 * 10.79e9 / (0.5 * 312e12) / 3600, rel=1e-3)


OPENLLAMA_3B = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 3200,
"intermediate_size": 8640, "num_hidden_layers": 26, "num_attention_heads": 32, "num_key_value_heads": 32,
"max_position_embeddings": 2048, "vocab_size": 32000, "hidden_act": "silu", "rms_norm_eps": 1e-06,
"tie_word_embeddings": false, "torch_dtype": "float16"}"""


def test_loss_lazy_layers_and_marks(make_llama):
    _, folder = make_llama(num_hidden_layers=9)
    analysis = make_analysis(9)
    analysis.lazy.layers[:] = [2, 7, 8]
    rows = advise(analysis, open_reference(folder, "local"), AdviceArgs()).depths
    lens = analysis.layers["logit_lens_loss"]
    assert [row.loss for row in rows] == lens.mean[1:]
    assert rows[4].stderr == pytest.approx(lens.std[5] / 10)
    assert [row.lazy for row in rows] == [0, 0, 1, 1, 1, 1, 1, 2, 3]
    marks = {row.n: row.marks for row in rows if row.marks}
    assert marks == {
        2: ("all layers before the first lazy one",),
        4: ("paper's choice, k/2",),
        9: ("the reference",),
    }
    memory = [row.job.memory().total for row in rows]
    assert memory == sorted(memory) and len(set(memory)) == 9
    # fp32 weights, gradients and two moments are 16 bytes a parameter; activations come on top.
    assert all(16 * row.job.model.parameters < row.job.memory().total for row in rows)


def test_text_marks_rows_and_says_what_it_cannot_know(make_llama):
    _, folder = make_llama()
    text = str(advise(make_analysis(5), open_reference(folder, "local"), AdviceArgs(gpu="H100")))
    assert "| **2** |" in text and "paper's choice, k/2" in text
    assert "The loss after healing is not in this table" in text
    assert "guessing scores ln 97 = 4.575" in text
    assert "hours on H100" in text and "for 1,000,000,000 tokens" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gpu": "Abacus"}, "--advice.gpu Abacus is not known; give one of "),
        ({"mfu": 0}, "--advice.mfu is 0"),
        ({"max_tokens": 0}, "--advice.max_tokens is 0"),
        ({"max_seq_length": 65}, "--advice.max_seq_length is 65; give 1 to 64"),
    ],
)
def test_bad_input(changes, told, make_llama):
    _, folder = make_llama()
    with pytest.raises(UserError, match=told):
        advise(make_analysis(5), open_reference(folder, "local"), replace(AdviceArgs(), **changes))


def test_an_analysis_of_another_model_is_refused(make_llama):
    _, folder = make_llama()
    with pytest.raises(UserError, match="is of 4 layers"):
        advise(make_analysis(4), open_reference(folder, "local"), AdviceArgs())
