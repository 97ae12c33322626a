"""LLaMA and its relatives: Mistral, Qwen, Phi-3, StableLM, OLMo, and the mixtures of experts Mixtral and Qwen3-MoE.

LLaMA has RMSNorm, rotary positions and a gated SiLU MLP. OLMo's norms have no parameters; OLMo-2 has norms behind
attention and MLP, and of all of q and k. The mixtures have several MLPs per layer, of which a token takes a few. Phi-3
(and Phi-4) has fused tensors; StableLM has LayerNorm.
"""

from dataclasses import replace

from inheritune_lit.checkpoint.architectures.base import GROUPED, Architecture, Entry, Stored, flag, like, real, window

WITHOUT_BIAS = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    layer_prefix="model.layers.{}.",
    outer={"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head"},
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": "self_attn.o_proj",
        "norm_2": "post_attention_layernorm",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    },
    entries=GROUPED | {"norm_eps": Entry("rms_norm_eps", real)},
    constants={"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False},
    fixed={"hidden_act": "silu"},
    defaults={"rms_norm_eps": 1e-6},
    litgpt_name="llama",
    free_head_size=True,
    ignored=("rotary_emb.inv_freq",),
)
LLAMA = replace(WITHOUT_BIAS, bias_switches={"attn": ("attention_bias", False), "mlp": ("mlp_bias", False)})
QK_NORMS: dict[str, str] = {"attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"}
POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}

MISTRAL = like(
    WITHOUT_BIAS,
    model_type="mistral",
    class_name="MistralForCausalLM",
    entries={"sliding_window_size": Entry("sliding_window", window)},
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    litgpt_name="mistral",
)
QWEN2 = like(
    WITHOUT_BIAS,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    constants={"attn_bias": True},
    fixed={"use_sliding_window": False},
    defaults={"num_key_value_heads": 32},
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen2\.5|qwq)",
    litgpt_name="Qwen2.5",
    free_head_size=False,
)
QWEN3 = like(
    WITHOUT_BIAS,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    block=QK_NORMS,
    constants={"norm_qk": True},
    fixed={"use_sliding_window": False, "attention_bias": False},
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen3)",
    litgpt_name="Qwen3",
)
PHI3 = like(
    MISTRAL,
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    without=["sliding_window", "num_key_value_heads"],
    block={
        "attn.qkv": "self_attn.qkv_proj",
        "mlp.fc_1": Stored("mlp.gate_up_proj", part=0),
        "mlp.fc_2": Stored("mlp.gate_up_proj", part=1),
    },
    fixed={"attention_bias": False},
    defaults={"rms_norm_eps": 1e-5},
    partial_rope=True,
    litgpt_names="(?!.*(falcon|Gemma))(?i:phi-[34])",
    litgpt_name="Phi-3",
    free_head_size=False,
)
STABLELM = like(
    WITHOUT_BIAS,
    model_type="stablelm",
    class_name="StableLmForCausalLM",
    entries={"norm_eps": Entry("layer_norm_eps", real), "attn_bias": Entry("use_qkv_bias", flag)}
    | dict.fromkeys(("parallel_residual", "shared_attention_norm"), Entry("use_parallel_residual", flag)),
    without=["parallel_residual", "rms_norm_eps"],
    constants={"norm_class_name": "LayerNorm"},
    # Its norms of q and k differ by head, litgpt's do not.
    fixed={"qk_layernorm": False},
    defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "num_key_value_heads": 32},
    partial_rope=True,
    litgpt_name="stablelm",
    free_head_size=False,
)
OLMO = like(
    WITHOUT_BIAS,
    model_type="olmo",
    class_name="OlmoForCausalLM",
    # The epsilon is fixed in OLMo's code.
    without=["norm_eps"],
    constants={"norm_class_name": "LayerNorm", "norm_eps": 1e-5},
    fixed={"attention_bias": False, "clip_qkv": None},
    litgpt_names=r"(?!.*(falcon|Gemma))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-)).*OLMo",
    litgpt_name="OLMo",
    free_head_size=False,
)
OLMO2 = like(
    WITHOUT_BIAS,
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    without=["norm_1", "norm_2"],
    block=QK_NORMS | POST_NORMS,
    constants={"norm_1": False, "norm_2": False, "post_attention_norm": True, "post_mlp_norm": True}
    | {"norm_qk": True, "norm_qk_type": "olmo2"},
    fixed={"attention_bias": False},
    defaults={"rms_norm_eps": 1e-5},
    litgpt_names="(?!.*(falcon|Gemma))(?i:olmo-2-)",
    litgpt_name="OLMo-2-1124",
    free_head_size=False,
)


def _experts(module: str, gate: str, down: str, up: str) -> dict[str, str]:
    """The module that has experts, and their own modules."""
    parts = {"fc_1": gate, "fc_2": up, "proj": down}
    experts = {f"mlp.experts.{{}}.{lit}": f"{module}.experts.{{}}.{hf}" for lit, hf in parts.items()}
    return {"mlp.gate": f"{module}.gate", **experts}


_DENSE = ("mlp.fc_1", "mlp.fc_2", "mlp.proj")
MIXTRAL = like(
    MISTRAL,
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    without=(*_DENSE, "sliding_window"),
    block=_experts("block_sparse_moe", gate="w1", down="w2", up="w3"),
    entries={"n_expert": Entry("num_local_experts"), "n_expert_per_token": Entry("num_experts_per_tok")},
    constants={"mlp_class_name": "LLaMAMoE"},
    defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    litgpt_name="Mixtral",
)
QWEN3_MOE = like(
    QWEN3,
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    without=(*_DENSE, "head_dim"),
    block=_experts("mlp", gate="gate_proj", down="down_proj", up="up_proj"),
    entries={
        # transformers 5 renames the entry.
        "n_expert": Entry("num_experts", also="num_local_experts"),
        "n_expert_per_token": Entry("num_experts_per_tok"),
        "moe_intermediate_size": Entry("moe_intermediate_size"),
    },
    constants={"mlp_class_name": "LLaMAMoE"},
    # litgpt's probabilities of the chosen experts add up to one.
    fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    defaults={"norm_topk_prob": False, "num_key_value_heads": 4},
)
