"""Phi (1, 1.5, 2): one norm for attention and MLP side by side; Phi-3 and Phi-4: LLaMA with fused tensors; StableLM."""

from dataclasses import replace

from inheritune_lit.checkpoint.architectures.base import GROUPED, Architecture, Entry, flag, gelu, number
from inheritune_lit.checkpoint.architectures.llama import LLAMA, MISTRAL
from inheritune_lit.checkpoint.architectures.sources import Split, Stored

PHI = Architecture(
    model_type="phi",
    class_name="PhiForCausalLM",
    base_prefix="model.",
    layer_prefix="model.layers.{}.",
    outer={"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.final_layernorm", "lm_head": "lm_head"},
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Split("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": "self_attn.dense",
        "mlp.fc": "mlp.fc1",
        "mlp.proj": "mlp.fc2",
    },
    entries=GROUPED | {"norm_eps": Entry("layer_norm_eps", number), "gelu_approximate": gelu("hidden_act")},
    constants={
        "norm_class_name": "LayerNorm",
        "mlp_class_name": "GptNeoxMLP",
        "parallel_residual": True,
        "shared_attention_norm": True,
        "bias": True,
        "lm_head_bias": True,
    },
    fixed={"qk_layernorm": False},
    defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5},
    partial_rope=True,
    litgpt_names="(?!.*(falcon|Gemma|OLMo))(?i:phi)(?!-[34])",
    litgpt_name="phi",
    ignored=("rotary_emb.inv_freq",),
)
PHI3 = replace(
    MISTRAL,
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    block=LLAMA.block
    | {
        "attn.qkv": "self_attn.qkv_proj",
        "mlp.fc_1": Stored("mlp.gate_up_proj", part=0),
        "mlp.fc_2": Stored("mlp.gate_up_proj", part=1),
    },
    fixed=LLAMA.fixed | {"attention_bias": False},
    defaults={"rms_norm_eps": 1e-5},
    partial_rope=True,
    litgpt_names="(?!.*(falcon|Gemma))(?i:phi-[34])",
    litgpt_name="Phi-3",
    free_head_size=False,
)
_PARALLEL = Entry("use_parallel_residual", flag)
STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    class_name="StableLmForCausalLM",
    entries=GROUPED
    | {
        "norm_eps": Entry("layer_norm_eps", number),
        "attn_bias": Entry("use_qkv_bias", flag),
        "parallel_residual": _PARALLEL,
        "shared_attention_norm": _PARALLEL,
    },
    constants={"norm_class_name": "LayerNorm", "mlp_class_name": "LLaMAMLP"},
    # Its norms of q and k differ by head, litgpt's do not.
    fixed=LLAMA.fixed | {"qk_layernorm": False},
    defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "num_key_value_heads": 32},
    partial_rope=True,
    litgpt_name="stablelm",
    bias_switches={},
    free_head_size=False,
)
