"""LLaMA and its relatives: Mistral, Qwen, OLMo, and the mixtures of experts Mixtral and Qwen3-MoE.

LLaMA has RMSNorm, rotary positions and a gated SiLU MLP. OLMo's norms have no parameters; OLMo-2 has norms behind
attention and MLP, and of all of q and k. The mixtures have several MLPs per layer, of which a token takes a few.
"""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.base import GROUPED, OTHERS, Architecture, Entry, number, window
from inheritune_lit.checkpoint.architectures.sources import Source, Split, Stacked
from inheritune_lit.errors import UserError

LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    base_prefix="model.",
    layer_prefix="model.layers.{}.",
    outer={"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head"},
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Split("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": "self_attn.o_proj",
        "norm_2": "post_attention_layernorm",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    },
    entries=GROUPED | {"norm_eps": Entry("rms_norm_eps", number)},
    constants={"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False},
    fixed={"hidden_act": "silu"},
    defaults={"rms_norm_eps": 1e-6},
    litgpt_names=OTHERS,
    litgpt_name="llama",
    bias_switches={
        "attn.qkv": ("attention_bias", False),
        "attn.proj": ("attention_bias", False),
        "mlp.fc_1": ("mlp_bias", False),
        "mlp.fc_2": ("mlp_bias", False),
        "mlp.proj": ("mlp_bias", False),
    },
    free_head_size=True,
    ignored=("rotary_emb.inv_freq",),
)
QK_NORMS: dict[str, Source | str] = {"attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"}

_WITHOUT_BIAS = replace(LLAMA, bias_switches={})
_TIED_HEAD_SIZE = replace(_WITHOUT_BIAS, free_head_size=False)
MISTRAL = replace(
    _WITHOUT_BIAS,
    model_type="mistral",
    class_name="MistralForCausalLM",
    entries=LLAMA.entries | {"sliding_window_size": Entry("sliding_window", window)},
    defaults=LLAMA.defaults | {"sliding_window": 4096, "num_key_value_heads": 8},
    litgpt_name="mistral",
)
QWEN2 = replace(
    _TIED_HEAD_SIZE,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    constants=LLAMA.constants | {"attn_bias": True},
    fixed=LLAMA.fixed | {"use_sliding_window": False},
    defaults=LLAMA.defaults | {"num_key_value_heads": 32},
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen2\.5|qwq)",
    litgpt_name="Qwen2.5",
)
QWEN3 = replace(
    _WITHOUT_BIAS,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    block=LLAMA.block | QK_NORMS,
    constants=LLAMA.constants | {"norm_qk": True},
    fixed=QWEN2.fixed | {"attention_bias": False},
    defaults=QWEN2.defaults | {"head_dim": 128},
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen3)",
    litgpt_name="Qwen3",
)
OLMO = replace(
    _TIED_HEAD_SIZE,
    model_type="olmo",
    class_name="OlmoForCausalLM",
    entries=GROUPED,
    # The epsilon is fixed in OLMo's code.
    constants=LLAMA.constants | {"norm_class_name": "LayerNorm", "norm_eps": 1e-5},
    fixed=LLAMA.fixed | {"attention_bias": False, "clip_qkv": None},
    litgpt_names=r"(?!.*(falcon|Gemma))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-)).*OLMo",
    litgpt_name="OLMo",
)
OLMO2 = replace(
    _TIED_HEAD_SIZE,
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    block={module: source for module, source in LLAMA.block.items() if module not in ("norm_1", "norm_2")}
    | QK_NORMS
    | {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"},
    constants=LLAMA.constants
    | {"norm_1": False, "norm_2": False, "post_attention_norm": True, "post_mlp_norm": True}
    | {"norm_qk": True, "norm_qk_type": "olmo2"},
    fixed=LLAMA.fixed | {"attention_bias": False},
    defaults={"rms_norm_eps": 1e-5},
    litgpt_names="(?!.*(falcon|Gemma))(?i:olmo-2-)",
    litgpt_name="OLMo-2-1124",
)


def _experts(block: dict[str, Source | str], module: str, gate: str, down: str, up: str) -> dict[str, Source | str]:
    """A block with experts instead of the MLP: the module that has them, and theirs."""
    return {name: source for name, source in block.items() if not name.startswith("mlp.")} | {
        "mlp.gate": f"{module}.gate",
        "mlp.experts.{}.fc_1": f"{module}.experts.{{}}.{gate}",
        "mlp.experts.{}.proj": f"{module}.experts.{{}}.{down}",
        "mlp.experts.{}.fc_2": f"{module}.experts.{{}}.{up}",
    }


def _without_dense_layers(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    dense, step = hf.get("mlp_only_layers"), hf.get("decoder_sparse_step", 1)
    if dense or step != 1:
        raise UserError(
            f"config.json: mlp_only_layers is {dense} and decoder_sparse_step {step}: layers without experts are not"
            " supported for this architecture"
        )
    return {}


MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    block=_experts(LLAMA.block, "block_sparse_moe", gate="w1", down="w2", up="w3"),
    entries=MISTRAL.entries
    | {"n_expert": Entry("num_local_experts"), "n_expert_per_token": Entry("num_experts_per_tok")},
    constants=LLAMA.constants | {"mlp_class_name": "LLaMAMoE"},
    defaults={"rope_theta": 1e6, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    litgpt_name="Mixtral",
    stacked={
        "mlp.gate": "mlp.gate",
        "mlp.experts.{}.fc_1": Stacked("mlp.experts.gate_up_proj", part=0, parts=2),
        "mlp.experts.{}.fc_2": Stacked("mlp.experts.gate_up_proj", part=1, parts=2),
        "mlp.experts.{}.proj": Stacked("mlp.experts.down_proj"),
    },
)
QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    block=_experts(QWEN3.block, "mlp", gate="gate_proj", down="down_proj", up="up_proj"),
    entries=QWEN3.entries
    | {
        # transformers 5 renames the entry.
        "n_expert": Entry("num_experts", also="num_local_experts"),
        "n_expert_per_token": Entry("num_experts_per_tok"),
        "moe_intermediate_size": Entry("moe_intermediate_size"),
    },
    constants=QWEN3.constants | {"mlp_class_name": "LLaMAMoE"},
    # litgpt's probabilities of the chosen experts add up to one.
    fixed=QWEN3.fixed | {"norm_topk_prob": True},
    defaults=LLAMA.defaults | {"norm_topk_prob": False, "num_key_value_heads": 4},
    more_fields=_without_dense_layers,
    more_entries=lambda config: {"decoder_sparse_step": 1, "mlp_only_layers": []},
    stacked=MIXTRAL.stacked,
)
