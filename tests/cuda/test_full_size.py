"""Training steps of whole models on simulated CUDA: what is compiled, and the memory that ``step_memory`` predicts."""

from typing import Any

import pytest

pytestmark = pytest.mark.slow
OPENLLAMA, LLAMA2, GPT2, SMOLLM2 = (
    {"ref": "openllama-3b", "n": 13},
    {"ref": "llama2-7b", "n": 7},
    {"ref": "gpt2-large", "block": 1024},
    {"ref": "smollm2-135m"},
)
EAGER, RECOMPUTED = {"speed__compile": "false"}, {"speed__activation_checkpointing": "true"}
CASES = {
    "openllama-mixed-4": {**OPENLLAMA, "micro": 4},
    "openllama-mixed-16": {**OPENLLAMA, "micro": 16},
    "openllama-true-8": {**OPENLLAMA, "micro": 8, "precision": "bf16-true"},
    "openllama-fp32-1": {**OPENLLAMA, "micro": 1, "precision": "32-true"},
    "openllama-mixed-recomputed-16": {**OPENLLAMA, "micro": 16, **RECOMPUTED},
    "llama2-mixed-4": {**LLAMA2, "micro": 4},
    "gpt2-true-8": {**GPT2, "micro": 8, "precision": "bf16-true"},
    "smollm2-mixed-16": {**SMOLLM2, "micro": 16},
    "openllama-mixed-4-eager": {**OPENLLAMA, "micro": 4, **EAGER},
    "llama2-true-recomputed-8-eager": {**LLAMA2, "micro": 8, "precision": "bf16-true", **EAGER, **RECOMPUTED},
    "smollm2-fp32-1-eager": {**SMOLLM2, "micro": 1, "precision": "32-true", **EAGER},
}
"""Options of ``simulate.py``. Memory is linear in the micro-batch, so few cases stand for all."""


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def found(request, simulate) -> dict[str, Any]:
    """The report of one case, simulated once for all tests of this file."""
    return simulate(**request.param)


def test_host_waits_for_loss_and_norm_alone(found):
    assert found["waits"] == {"item @ train/loop.py train_step": 2}


def test_attention_is_fused_and_needs_no_mask(found):
    kernel = "efficient" if found["precision"] == "32-true" else "cudnn"
    assert found["attention"].keys() == {f"{kernel}_attention", f"{kernel}_attention_backward"}


def test_compiled_code_is_one_graph_each_way_without_fp32_logits(found):
    if not found["kernels"]["compiled"]:
        pytest.skip("this case is eager")
    assert found["compiled"]["graphs"] == 2
    if found["precision"] != "32-true":
        assert found["compiled"]["logits_fp32"] == []


def test_predicted_memory(found):
    assert found["predicted"]["total"] == pytest.approx(found["peak_gb"], rel=0.05)
