"""What a model costs: FLOPs per token, and the bytes that its blocks keep for the backward pass."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import tensor_shapes
from inheritune_lit.io.arguments import Precision
from inheritune_lit.model.attention import fuse_attention, install_plans
from inheritune_lit.model.gpt import Transformer, build_model

LONGEST_BLOCK = 2048  # most tokens per sample where no number is given: the paper's


Names = Collection[str] | None  # of parameters; None for all


def flops_per_token(config: Config, block_size: int, trained: Names = None) -> float:
    """Forward and backward FLOPs per token: 6 per matrix parameter (head included) and 6 * layers * width * T of causal
    attention.

    Where only the parameters of these names are ``trained``, a third of it is the forward pass, which is all of it
    where there are none; the third for gradients of inputs is needed above the lowest of them, the third for gradients
    of weights where these are trained.
    """
    heads, gates = config.n_head * config.head_size, 2 if config.mlp_class_name in ("LLaMAMLP", "GemmaMLP") else 1
    layer: list[tuple[tuple[str, ...], int]] = [  # in the order of the forward pass: parameters, products per token
        (("norm_1",), 0),
        (("attn.qkv",), (config.n_head + 2 * config.n_query_groups) * config.head_size * config.n_embd),
        (("attn.norm_",), 0),
        ((), heads * block_size),
        (("attn.proj",), heads * config.n_embd),
        (("post_attention_norm", "norm_2"), 0),
        (("mlp.fc", "mlp.gate", "mlp.experts"), gates * config.intermediate_size * config.n_embd),
        (("mlp.proj",), config.intermediate_size * config.n_embd),
        (("post_mlp_norm",), 0),
    ]
    starts = [f"{_LAYER}{number}." for number in range(config.n_layer)]
    stages = [(tuple(start + name for name in names), count) for start in starts for names, count in layer]
    stages += [(("transformer.ln_f",), 0), (("lm_head",), config.padded_vocab_size * config.n_embd)]
    flops, reached = 0.0, _trains(trained, _EMBEDDINGS)
    for names, count in stages:
        own = _trains(trained, names) if names else reached  # both operands of attention are inputs
        flops += 2.0 * count * (1 + reached + own)
        reached |= own
    return flops


_LAYER, _EMBEDDINGS = "transformer.h.", ("transformer.wte", "transformer.wpe")


def _trains(trained: Names, prefixes: tuple[str, ...]) -> bool:
    return trained is None or any(name.startswith(prefixes) for name in trained)


def layers_reached(config: Config, trained: Names = None) -> int:
    """How many layers, the last ones, the backward pass goes through."""
    depth = config.n_layer
    if _trains(trained, _EMBEDDINGS):
        return depth
    return next((depth - layer for layer in range(depth) if _trains(trained, (f"{_LAYER}{layer}.",))), 0)


def kept_bytes(
    config: Config, block_size: int, precision: Precision, compiled: bool, budget: float = 1.0, trained: Names = None
) -> int:
    """Bytes per sample that the blocks of a model on a GPU keep for the backward pass, found without any data.

    Autograd says what it keeps, or where the model is to be compiled, the partitioner of torch.compile, with the
    ``budget`` of ``SpeedArgs.activation_budget``. Weights are not counted: linear layers have theirs in the type that
    they compute in. Parameters are ``trained`` as of ``flops_per_token``.
    """
    if config.mlp_class_name == "LLaMAMoE":  # as many elements as the experts of a token
        width = (config.moe_intermediate_size or config.intermediate_size) * config.n_expert_per_token
        config = replace(config, mlp_class_name="LLaMAMLP", intermediate_size=width)
        trained = trained and {re.sub(r"\.experts\.\d+", "", name) for name in trained}
    first, names = config.n_layer - layers_reached(config, trained), trained or tensor_shapes(config, tied=False)
    inner = [f"{_LAYER}{layer}." for layer in range(first, config.n_layer)]
    layers = [tuple(sorted(name[len(each) :] for name in names if name.startswith(each))) for each in inner]
    outer = [name for name in names if not name.startswith(_LAYER)]

    def count(layers: Sequence[tuple[str, ...]]) -> int:
        all_names = [*outer, *(f"{_LAYER}{number}.{name}" for number, own in enumerate(layers) for name in own)]
        settings = (replace(config, n_layer=len(layers)), block_size, precision, compiled, budget, sorted(all_names))
        if (key := repr(settings)) not in _counted:
            _counted[key] = _count_kept(*settings)
        return _counted[key]

    if compiled and budget < 1:  # what a budget keeps of a layer depends on the others
        return count(layers)
    # Layers in which the same is trained keep the same, but for the lowest, whose input may need no gradient.
    lowest = layers[: not _trains(trained, _EMBEDDINGS)]
    kinds = Counter(layers[len(lowest) :])
    each_once = count([*lowest, *kinds])
    return each_once + sum((n - 1) * (count([*lowest, *kinds, kind]) - each_once) for kind, n in kinds.items() if n > 1)


_counted: dict[str, int] = {}  # takes seconds, and a plan asks for many micro-batches


def _count_kept(
    config: Config, block_size: int, precision: Precision, compiled: bool, budget: float, trained: list[str]
) -> int:
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
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
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
    model = build_model(replace(config, block_size=block_size))
    model.cos, model.sin = model.rope_cache()
    model.forward = model.hidden_states
    fuse_attention(model, attention=_flash_attention)
    if config.sliding_window_size is not None:
        install_plans(model)
    low: Any = {"32-true": (), "bf16-mixed": torch.nn.Linear, "bf16-true": torch.nn.Module}[precision]
    for module in (each for each in model.modules() if isinstance(each, low)):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().bfloat16()))
    return model


def _flash_attention(q: Any, k: Any, v: Any, attn_mask: Any, is_causal: bool, **_: Any) -> torch.Tensor:
    """The fused kernel for CPUs, which keeps what those of a GPU keep."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q, k, v, 0.0, is_causal, attn_mask=attn_mask)[0]
