"""Loading litgpt checkpoints: the litgpt model itself is the judge; damaged folders are one clear line."""

import pickle

import pytest
import torch
import yaml
from litgpt.model import GPT
from tiny import SHAPE

from inheritune_lit.checkpoint.config import Config, load_config
from inheritune_lit.errors import UserError
from inheritune_lit.model.load import is_tied, load_model, load_state


@pytest.fixture
def made(tmp_path):
    """A checkpoint folder and the litgpt model whose weights it holds."""
    torch.manual_seed(0)
    model = GPT(Config(**SHAPE))
    torch.save(model.state_dict(), tmp_path / "lit_model.pth")
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(SHAPE))
    return tmp_path, model


def test_logits_equal_litgpt(made):
    folder, model = made
    tokens_BT = torch.randint(0, 400, (2, 32))
    assert torch.equal(load_model(folder)(tokens_BT), model(tokens_BT))


def test_dtype_is_cast_and_rope_stays_fp32(made):
    folder, model = made
    loaded = load_model(folder, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())
    assert loaded.cos.dtype == torch.float32


def test_training_checkpoint_of_litgpt_is_read_too(made):
    folder, model = made
    torch.save({"model": model.state_dict()}, folder / "lit_model.pth")
    assert torch.equal(load_state(folder)["lm_head.weight"], model.lm_head.weight)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tied_head_stays_tied(made, dtype):
    folder, model = made
    assert not is_tied(load_state(folder))
    model.lm_head.weight = model.transformer.wte.weight
    torch.save(model.state_dict(), folder / "lit_model.pth")
    loaded = load_model(folder, dtype=dtype)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_changing_the_model_does_not_change_the_file(made):
    folder, model = made
    loaded = load_model(folder)
    with torch.no_grad():
        loaded.lm_head.weight.zero_()
    assert torch.equal(load_state(folder)["lm_head.weight"], model.lm_head.weight)


def _delete_weights(folder):
    (folder / "lit_model.pth").unlink()


def _truncate_weights(folder):
    path = folder / "lit_model.pth"
    path.write_bytes(path.read_bytes()[:-4000])


def _wrong_depth(folder):
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**SHAPE, "n_layer": 3}))


def _too_shallow(folder):
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**SHAPE, "n_layer": 1}))


def _wrong_width(folder):
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**SHAPE, "n_embd": 64}))


def _unknown_field(folder):
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**SHAPE, "n_layers": 2}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_delete_weights, "lit_model.pth is missing"),
        (_truncate_weights, "cannot be read"),
        (_wrong_depth, "3 layers.*missing, such as transformer.h.2"),
        (_too_shallow, "1 layers.*not of this model, such as transformer.h.1"),
        (_wrong_width, "has shape"),
        (_unknown_field, "isn't a litgpt model configuration.*n_layers"),
    ],
)
def test_damaged_checkpoint_is_one_line(made, spoil, told):
    folder, _ = made
    spoil(folder)
    with pytest.raises(UserError, match=told) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no checkpoint folder"):
        load_config(tmp_path / "nowhere")


class _Attack:
    def __reduce__(self):
        import pathlib

        return (pathlib.Path.touch, (pathlib.Path("attacked"),))


def test_pickled_code_is_refused_and_not_run(made, monkeypatch):
    folder, _ = made
    monkeypatch.chdir(folder)
    (folder / "lit_model.pth").write_bytes(pickle.dumps(_Attack()))
    with pytest.raises(UserError, match="holds Python objects"):
        load_model(folder)
    assert not (folder / "attacked").exists()
