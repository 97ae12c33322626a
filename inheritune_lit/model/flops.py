"""What a model costs: FLOPs per token, and the bytes that its blocks keep for the backward pass."""

from dataclasses import replace
from typing import Any

import torch
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.io.arguments import Precision
from inheritune_lit.model.attention import fuse_attention, install_plans
from inheritune_lit.model.gpt import Transformer, build_model

LONGEST_BLOCK = 2048  # most tokens per sample where no number is given: the paper's


def flops_per_token(config: Config, block_size: int) -> float:
    """Forward and backward FLOPs per token: 6 per matrix parameter (head included) and 6 * layers * width * T of causal
    attention."""
    qkv_and_projection = (2 * config.n_head + 2 * config.n_query_groups) * config.head_size
    mlp = (3 if config.mlp_class_name in ("LLaMAMLP", "GemmaMLP") else 2) * config.intermediate_size
    matrices = (config.n_layer * (qkv_and_projection + mlp) + config.padded_vocab_size) * config.n_embd
    return 6.0 * (matrices + config.n_layer * config.n_head * config.head_size * block_size)


def kept_bytes(config: Config, block_size: int, precision: Precision, compiled: bool, budget: float = 1.0) -> int:
    """Bytes per sample that the blocks of a model on a GPU keep for the backward pass, found without any data.

    Autograd says what it keeps, or where the model is to be compiled, the partitioner of torch.compile, with the
    ``budget`` of ``SpeedArgs.activation_budget``. Weights are not counted: linear layers have theirs in the type that
    they compute in.
    """
    if config.mlp_class_name == "LLaMAMoE":  # as many elements as the experts of a token
        width = (config.moe_intermediate_size or config.intermediate_size) * config.n_expert_per_token
        config = replace(config, mlp_class_name="LLaMAMLP", intermediate_size=width)

    def count(n_layer: int) -> int:
        settings = (replace(config, n_layer=n_layer), block_size, precision, compiled, budget)
        if (key := repr(settings)) not in _counted:
            _counted[key] = _count_kept(*settings)
        return _counted[key]

    if config.n_layer == 1 or (compiled and budget < 1):  # what a budget keeps of a layer depends on the others
        return count(config.n_layer)
    return count(1) + (config.n_layer - 1) * (count(2) - count(1))


_counted: dict[str, int] = {}  # takes seconds, and a plan asks for many micro-batches


def _count_kept(config: Config, block_size: int, precision: Precision, compiled: bool, budget: float) -> int:
    # Here, because they take a second that other commands need not wait for.
    from functorch.compile import aot_function, min_cut_rematerialization_partition, nop
    from torch._inductor.decomposition import select_decomp_table

    sizes: dict[int, int] = {}
    keep: list[torch.Tensor] = []  # so that no storage's address is used twice

    def note(tensor: torch.Tensor, counts: bool = True) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes.setdefault(storage._cdata, storage.nbytes() * counts)
        keep.append(tensor)
        return tensor

    def partition(joint: Any, inputs: Any, *, num_fwd_outputs: int, **options: Any) -> Any:
        graphs = min_cut_rematerialization_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **options)
        nodes = list(graphs[0].graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                note(node.meta["val"], counts=False)
        for node in nodes[-1].args[0][num_fwd_outputs:]:
            if isinstance(node.meta["val"], torch.Tensor):  # others are sizes
                note(node.meta["val"])
        return graphs

    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        model = _blocks(config, block_size, precision)
        tensors: dict[str, torch.Tensor] = {**dict(model.named_parameters()), "cos": model.cos, "sin": model.sin}
        tokens_BT = torch.zeros(1, block_size, dtype=torch.long)
        for tensor in (*tensors.values(), tokens_BT):
            note(tensor, counts=False)
        if compiled:

            def run(state: list[torch.Tensor], tokens_BT: torch.Tensor) -> torch.Tensor:
                return torch.func.functional_call(model, dict(zip(tensors, state, strict=True)), (tokens_BT,))

            traced = aot_function(run, nop, nop, partition_fn=partition, decompositions=select_decomp_table())
            with functorch_config.patch(activation_memory_budget=budget):
                traced(list(tensors.values()), tokens_BT)
        else:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                model(tokens_BT)
    return sum(sizes.values())


def _blocks(config: Config, block_size: int, precision: Precision) -> Transformer:
    """A model without its head, as it is trained on a GPU, of fake tensors."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    try:
        model = build_model(replace(config, block_size=block_size))
    finally:
        torch.set_default_dtype(default)
    model.cos, model.sin = model.rope_cache()
    model.forward = model.hidden_states
    fuse_attention(model, attention=_flash_attention)
    if config.sliding_window_size is not None:
        install_plans(model)
    if precision == "bf16-mixed":
        for linear in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
            for name, parameter in list(linear.named_parameters()):
                setattr(linear, name, torch.nn.Parameter(parameter.detach().bfloat16()))
    return model


def _flash_attention(q: Any, k: Any, v: Any, attn_mask: Any, is_causal: bool, **_: Any) -> torch.Tensor:
    """The fused kernel for CPUs, which keeps what those of a GPU keep."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q, k, v, 0.0, is_causal, attn_mask=attn_mask)[0]
