"""Small random copies of any causal architecture: what the proofs and the tests run on.

A twin has the class, the layer types and the attention implementation of a model, and almost none of its size.
Its configuration is the original's with every size replaced by a small one, field by field, by the field's own name;
what a few architectures need besides is in `EXCEPTIONS`. All weights are redrawn with standard deviation
1/sqrt(fan-in), so that a signal passes through every path (the initialisation of many classes is too small for that).
"""

import dataclasses
import inspect
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

__all__ = ["build_twin", "causal_architectures", "tiny_model"]

VOCABULARY = 128
POSITIONS = 160
HEADS = 4

# Sizes by the name of the field, in widths.
WIDTHS = {
    1: "hidden_size d_model n_embd embedding_size emb_dim embedding_dim word_embed_proj_dim attention_hidden_size"
    " lru_width hidden_size_global input_embedding_size output_embedding_size moe_intermediate_size"
    " shared_expert_intermediate_size shared_experts_intermediate_size moe_shared_expert_intermediate_size"
    " expert_ffn_hidden_size router_hidden_size out_hidden_size projection_dim vision_output_dim projector_input_dim"
    " projector_output_dim classifier_proj_size pronunciation_embed_dim shape_embed_dim ple_embed_dim dim_model_base"
    " q_lora_rank kv_lora_rank o_lora_rank hc_lowrank prompt_mid_dim adapter_out_dim",
    2: "intermediate_size intermediate_size_mlp dense_intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim"
    " ffn_hidden_size d_ff dff dim_ff d_inner n_inner feed_forward_size shared_intermediate_size mamba_d_ssm",
}
HEAD_WIDTHS = (
    "head_dim qk_nope_head_dim v_head_dim d_kv d_head dim_head attention_head_dim attention_head_size kv_channels"
    " swa_head_dim global_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim"
    " indexer_head_dim query_pre_attn_scalar"
)
SIZES = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input unpadded_vocab_size pronunciation_vocab_size shape_vocab_size"
    " encoder_hash_byte_group_vocab decoder_vocab_size vocab_offset",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions"
    " context_length model_max_length original_max_position_embeddings",
    HEADS: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"
    " attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_heads"
    " linear_num_value_heads index_n_heads indexer_n_heads mamba_n_heads mamba_num_heads"
    " num_experts n_routed_experts num_local_experts moe_num_experts",
    2: "num_key_value_heads swa_num_key_value_heads num_global_key_value_heads num_kv_heads linear_num_key_heads"
    " num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts topk_group n_group"
    " num_expert_group n_groups o_groups altup_num_inputs heads_per_ngram split_ngram_parts hc_mult hc_count",
    1: "n_shared_experts num_shared_experts moe_num_shared_experts zero_expert_num mamba_n_groups mamba_ngroups",
    0: "first_k_dense_replace num_dense_layers num_kv_shared_layers num_nextn_predict_layers moe_layer_start_index",
    8: "qk_rope_head_dim rotary_dim mamba_d_state state_size ssm_state_size conv_size hidden_size_per_layer_input"
    " laurel_rank chunk_size mamba_chunk_size time_step_rank mamba_dt_rank d_rel rel_extent adapter_rank"
    " gated_norm_rank",
}
LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_encoder_layers"
    " depth num_blocks num_global_layers"
)
WINDOWS = "sliding_window sliding_window_size attention_window_size window_size local_attention attention_chunk_size"

WIDTH_OF = {name: width for width, names in WIDTHS.items() for name in names.split()}
SIZE_OF = {name: size for size, names in SIZES.items() for name in names.split()}
# What the class works out again from the other fields: lists of layer numbers, rotary tables that fit one head width.
RECOMPUTED = {"full_attn_idxs", "moe_layers", "mlp_only_layers", "ple_layer_ids", "rope_parameters", "dtype"}

# What `tiny_model` gives to a default configuration that lacks a kind of layer or does not stand alone.
WINDOWED: dict[str, Any] = {"sliding_window": 4096}
QWEN_WINDOWED = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1}
BOTH_WINDOWED = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]} | WINDOWED
MIXED = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": BOTH_WINDOWED,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "doge": WINDOWED,
    "dots1": BOTH_WINDOWED | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granitemoehybrid": MIXED,
    "laguna": BOTH_WINDOWED,
    "lfm2": MIXED | {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": MIXED | {"layer_types": ["conv", "full_attention"]},
    "mellum": BOTH_WINDOWED,
    "ministral3": WINDOWED,
    "mixtral": WINDOWED,
    "phi3": WINDOWED,
    "phimoe": WINDOWED,
    "qwen2": QWEN_WINDOWED,
    "qwen2_moe": QWEN_WINDOWED,
    "qwen3": QWEN_WINDOWED,
    "qwen3_moe": QWEN_WINDOWED,
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {"is_decoder": True},
    "smollm3": QWEN_WINDOWED | {"layer_types": None},
    "starcoder2": WINDOWED,
    "xmod": {"default_language": "en_XX"},
}

# What the small configuration of an architecture needs beyond the rules.
SHARED_BLOCKS = ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"]
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": PLAIN_ROPE, "sliding_attention": PLAIN_ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "dots3_note_text": {
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": 32,
        "swa_kv_lora_rank": 32,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hrm_text": {"num_hidden_layers": 8, "num_layers_per_stack": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "longcat_flash": {"qk_head_dim": None, "head_dim": 8},
    "mamba2": {"expand": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "xlstm": {"hidden_size": 128, "embedding_dim": None},
    "zamba": {
        "layers_block_type": SHARED_BLOCKS,
        "num_hidden_layers": 5,
        "attention_hidden_size": None,
        "attention_head_dim": None,
    },
    "zamba2": {"layers_block_type": SHARED_BLOCKS, "num_hidden_layers": 5},
}


def causal_architectures() -> list[str]:
    """Return every model type that the installed transformers maps to a causal language model, in order of name."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(model_type: str, attn_implementation: str | None = None) -> PreTrainedModel:
    """Build a causal language model of an architecture with tiny random weights (width 32, 128 tokens), in eval mode.

    Windows hold 64 tokens, so that texts shorter than that see the whole model.

    Parameters
    ----------
    model_type
        One of `causal_architectures()`.
    attn_implementation
        "eager", "sdpa", ...; by default what transformers chooses.

    Raises
    ------
    Exception
        Whatever the class raises that cannot be built alone (drafters, codec decoders, towers with further packages)
        or does not have the implementation (`ValueError`).
    """
    config_class = CONFIG_MAPPING[model_type]
    model_class = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[config_class])
    config = config_class(**KINDS.get(model_type, {}))
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    return build_twin(config, model_class, width=32, window=64)


def build_twin(
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    width: int = 64,
    window: int = 4,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Build a small random model with the class, layer types and attention implementation of another, in eval mode.

    Parameters
    ----------
    config
        The configuration of the original; it is not changed.
    model_class
        The class of the original, e.g. ``type(model)``.
    width
        Width of the hidden states; four heads, and a layer or two of every type.
    window
        Tokens that a sliding window or chunk holds, where the original has one.
    attn_implementation
        That of the original by default.
    """
    attn_implementation = attn_implementation or config._attn_implementation
    if model_class.config_class and not isinstance(
        config, model_class.config_class
    ):  # the text model of a multimodal wrapper
        config = config.get_text_config(decoder=True)
    small = shrink(config, width=width, window=window)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class._from_config(small, attn_implementation=attn_implementation, dtype=torch.float32)
        redraw_weights(model)
    return model.eval()


def shrink(config: PreTrainedConfig, *, width: int, window: int) -> PreTrainedConfig:
    """Return a configuration of the same class with small sizes and every kind of layer."""
    given = config.to_dict()
    kept = kept_layers(given)
    values = {}
    for name in field_names(config):
        saved_as = name if name in given else config.attribute_map.get(name, "")
        if saved_as not in given or name in RECOMPUTED:
            continue
        value = given[saved_as]
        if name in config.sub_configs:
            value = shrink(getattr(config, name), width=width, window=window) if value else value
        elif isinstance(value, list):
            value = [value[index] for index in kept] if len(value) == layer_count(given) else value
            value = [shrink_value(name, entry, width, window, len(kept)) for entry in value]
        else:
            value = shrink_value(name, value, width, window, len(kept))
        values[name] = value
    for name in ("num_key_value_heads", "num_kv_heads"):
        if name in values and given.get(name) in (None, given.get("num_attention_heads")):
            values[name] = values.get("num_attention_heads", HEADS)
    if "use_cache" in given:  # an encoder keeps none, and some classes cannot build one for mixed layers
        values["use_cache"] = False
    values.update(EXCEPTIONS.get(config.model_type, {}))
    small = type(config)(**values)
    if given.get("is_causal") is not None:  # no field of its own
        small.is_causal = given["is_causal"]
    return small


def field_names(config: PreTrainedConfig) -> list[str]:
    """Return what a configuration is made of: its fields, or for transformers before 5.4 what its constructor takes."""
    if dataclasses.is_dataclass(config):
        return [field.name for field in dataclasses.fields(config)]
    return [name for name in inspect.signature(type(config).__init__).parameters if name not in ("self", "kwargs")]


def layer_count(values: dict[str, Any]) -> int:
    """Return the number of layers that a configuration states, or that its list of layer types implies."""
    named = next((values[name] for name in LAYERS.split() if isinstance(values.get(name), int)), 0)
    return named or len(values.get("layers_block_type") or ())


def kept_layers(values: dict[str, Any]) -> list[int]:
    """Return the numbers of the first layers that together have every value of every per-layer list, two at least."""
    count = layer_count(values)
    lists = [v for k, v in values.items() if isinstance(v, list) and len(v) == count and k not in RECOMPUTED]
    kept: list[int] = []
    for index in range(count):
        if any(entries[index] not in [entries[other] for other in kept] for entries in lists):
            kept.append(index)
    spare = (index for index in range(count) if index not in kept)
    while len(kept) < min(2, count):
        kept.append(next(spare))
    return sorted(kept) or [0, 1]


def shrink_value(name: str, value: Any, width: int, window: int, layers: int) -> Any:
    """Return the small value of one field, by its name; what is no size stays as it is."""
    if value is None and name == "head_dim":
        return width // HEADS
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name.endswith(("token_id", "token_index")):
        return value if value < VOCABULARY else value % 8
    if name in LAYERS.split():
        return layers
    if name in WINDOWS.split():
        return min(window, value)
    if name in HEAD_WIDTHS.split():
        return width // HEADS
    if name in ("mamba_d_head", "mamba_head_dim"):
        return 2 * width // HEADS
    if SIZE_OF.get(name) == HEADS and value == HEADS - 1:
        return HEADS // 2  # a width that is a power of two has no three heads
    return WIDTH_OF[name] * width if name in WIDTH_OF else min(SIZE_OF.get(name, value), value)


def redraw_weights(model: nn.Module) -> None:
    """Draw every matrix anew with standard deviation 1/sqrt(fan-in); vectors get a little noise."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.nan_to_num_(1.0).add_(torch.randn_like(parameter), alpha=0.05)
            else:
                fan_in = 1 if id(parameter) in embeddings else parameter.shape[-1]
                parameter.normal_(0.0, fan_in**-0.5)
