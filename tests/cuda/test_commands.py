"""Each command that uses a GPU, on a simulated one: where it computes, with which kernels, and when the host waits.

A wait stops the host until the GPU has nothing left to do. Copies of weights at the beginning and the end have to wait;
elsewhere every wait is listed here.
"""

from collections.abc import Iterable
from typing import Any

MODEL = ("mm", "addmm", "bmm", "baddbmm", "embedding", "scaled_dot_product_attention", "softmax", "cross_entropy_loss")
"""What a model computes with."""
WEIGHTS = (
    "train/setup.py",
    "train/saving.py",
    "train/optim.py load_state_dict",
    "train/teach.py teach",
    "model/load.py",
    "inherit/stream.py _load",
)


def waits(found: dict[str, int]) -> dict[str, int]:
    """Waits other than for weights that are moved."""
    return {place: count for place, count in found.items() if not any(part in place for part in WEIGHTS)}


def on_host(found: dict[str, Any], names: Iterable[str] = MODEL) -> set[str]:
    """Operations of a model that were computed on the CPU."""
    return {name for name in names if found["on_host"].get(f"aten.{name}") or found["on_host"].get(f"aten._{name}")}


def kernels(found: dict[str, Any]) -> set[str]:
    """Attention kernels of the forward pass."""
    return {name for name in found["attention"] if "backward" not in name}


def training_waits_twice_a_step_and_once_a_validation(found: dict[str, Any]) -> None:
    assert (found["stopped_after"], found["steps"]) == (1, 3)
    assert waits(found["waits"]) == {
        "item @ train/loop.py train_step": 2 * 2,
        "copy to host @ evaluation/held_out.py losses_of": 2,
    }
    assert not on_host(found)
    assert kernels(found) == {"cudnn_attention"}
    assert found["operations"]["aten._fused_adamw_"] == 2 * 2  # with and without decay


def distillation_waits_as_training_does(found: dict[str, Any]) -> None:
    assert waits(found["teaching"]) == {
        "copy to host @ train/teach.py _write": 3,  # of 18 batches
    }
    with_teacher = {
        "item @ train/loop.py train_step": 2 * 3,
        "copy to host @ evaluation/held_out.py losses_of": 3,
    }
    assert waits(found["stored"]) == waits(found["waits"]) == with_teacher
    assert not on_host(found)
    assert kernels(found) == {"cudnn_attention"}


def growing_measures_and_trains_on_the_gpu(found: dict[str, Any]) -> None:
    assert found["depths"] == [1, 2]
    rounds, measured = 2, 3  # the reference is measured too
    assert waits(found["waits"]) == {
        "item @ train/loop.py train_step": rounds * 2 * 3,
        "copy to host @ evaluation/held_out.py losses_of": rounds * 3 + measured,
    }
    assert not on_host(found)
    # Training puts cuDNN's first; what the rounds are compared by leaves the order to PyTorch.
    assert kernels(found) == {"cudnn_attention", "flash_attention"}


def evaluation_waits_for_a_row_of_the_prefix_tree_not_for_a_request(found: dict[str, Any]) -> None:
    assert found["tasks"] == ["piqa"]
    assert waits(found["waits"]) == {
        "copy to host @ evaluation/held_out.py losses_of": 1,
        "copy to device @ evaluation/scoring.py _block": 2,
        "copy to device @ evaluation/scoring.py _score_row": 2 + 2,
        "copy to device @ evaluation/scoring.py _score_targets": 1,
        "copy to host @ evaluation/scoring.py _score_targets": 2,
    }
    assert not on_host(found)
    assert kernels(found) == {"flash_attention", "efficient_attention with a mask"}


def generation_waits_at_every_token(found: dict[str, Any]) -> None:
    assert [len(each) for each in found["made"]] == [5, 5]
    assert waits(found["waits"]) == {
        "copy to device @ evaluation/generation.py generate": 2 + 3 * 4,
        "index from host @ evaluation/generation.py generate": 1,
        "item @ evaluation/generation.py advance": 4,
        "item @ evaluation/scoring.py check_finite": 5,
        "copy to host @ evaluation/generation.py generate": 5,
    }
    assert not on_host(found)


def analysis_computes_ranks_on_the_host_and_the_rest_on_the_gpu(found: dict[str, Any]) -> None:
    assert "analysis.json" in found["written"]
    layers = 2
    per_layer = {place: count for place, count in waits(found["waits"]).items() if "measure" in place}
    assert per_layer["item @ analysis/measures.py measure_heads"] == layers
    assert per_layer["copy to host @ analysis/measures.py attention_rank"] == layers
    assert on_host(found) == {"bmm"}  # squared attention matrices, for their eigenvalues
    assert found["on_host"]["aten.bmm"] == found["on_host"]["aten._linalg_eigh"]
    assert {"aten.mm", "aten.bmm"} <= found["operations"].keys()


CHECKS = {
    "train": training_waits_twice_a_step_and_once_a_validation,
    "distil": distillation_waits_as_training_does,
    "grow": growing_measures_and_trains_on_the_gpu,
    "evaluate": evaluation_waits_for_a_row_of_the_prefix_tree_not_for_a_request,
    "generate": generation_waits_at_every_token,
    "analyze": analysis_computes_ranks_on_the_host_and_the_rest_on_the_gpu,
}


def test_commands(scenarios):
    """In one test, so that one process of pytest has the scenarios made: most of their time is imports."""
    assert scenarios.keys() == CHECKS.keys()
    for name, check in CHECKS.items():
        check(scenarios[name])
