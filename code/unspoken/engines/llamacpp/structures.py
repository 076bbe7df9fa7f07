"""The structures llama.cpp's functions take by value, for the versions whose layout is known.

A structure of another version would be read wrongly without a word, so nobody's word is taken for it: a layout
counts as the right one only if the library's own defaults, read with it, are those that llama.h documents. Each
ends in spare bytes, so that a version which appends fields writes into them and not behind them.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from typing import Any

_SPARE = ("spare", c.c_uint64 * 32)

_MODEL_FIELDS: list[Any] = [
    ("devices", c.c_void_p),
    ("tensor_buft_overrides", c.c_void_p),
    ("n_gpu_layers", c.c_int32),
    ("split_mode", c.c_int32),
    ("load_mode", c.c_int32),
    ("lazy_mode", c.c_int32),
    ("main_gpu", c.c_int32),
    ("tensor_split", c.c_void_p),
    ("progress_callback", c.c_void_p),
    ("progress_callback_user_data", c.c_void_p),
    ("kv_overrides", c.c_void_p),
    ("vocab_only", c.c_bool),
    ("check_tensors", c.c_bool),
    ("use_extra_bufts", c.c_bool),
    ("no_host", c.c_bool),
    ("no_alloc", c.c_bool),
    ("load_mtp", c.c_bool),
    _SPARE,
]
_CONTEXT_HEAD: list[Any] = [
    *((name, c.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
    *((name, c.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
    *((name, c.c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
    *((name, c.c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
    *((name, c.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
    *((name, c.c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
    ("yarn_orig_ctx", c.c_uint32),
    ("defrag_thold", c.c_float),
    ("cb_eval", c.c_void_p),
    ("cb_eval_user_data", c.c_void_p),
    ("type_k", c.c_int32),
    ("type_v", c.c_int32),
]
_CONTEXT_TAIL: list[Any] = [
    ("abort_callback", c.c_void_p),
    ("abort_callback_data", c.c_void_p),
    *((name, c.c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
    ("samplers", c.c_void_p),
    ("n_samplers", c.c_size_t),
    ("ctx_other", c.c_void_p),
    _SPARE,
]


class ModelParams(c.Structure):
    """`llama_model_params` as in llama-cpp-python 0.3.36 and llama.cpp b11548 to b11739."""

    _fields_ = _MODEL_FIELDS


class ContextParamsPlain(c.Structure):
    """`llama_context_params` as in llama-cpp-python 0.3.36."""

    _fields_ = [*_CONTEXT_HEAD, *_CONTEXT_TAIL]


class ContextParamsCached(c.Structure):
    """`llama_context_params` as in llama.cpp b11548 to b11739: the size of a cache for experts before the tail."""

    _fields_ = [*_CONTEXT_HEAD, ("moe_cache_size", c.c_size_t), *_CONTEXT_TAIL]


class Batch(c.Structure):
    """`llama_batch`: parallel arrays, one entry per token."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.c_void_p),
        ("embd", c.c_void_p),
        ("pos", c.c_void_p),
        ("n_seq_id", c.c_void_p),
        ("seq_id", c.c_void_p),
        ("logits", c.c_void_p),
    ]


MODEL_LAYOUTS: tuple[type[c.Structure], ...] = (ModelParams,)
CONTEXT_LAYOUTS: tuple[type[c.Structure], ...] = (ContextParamsCached, ContextParamsPlain)
# What llama.h sets, whatever the version; enough fields to tell a shift by any amount.
_MODEL_DEFAULTS: dict[str, Any] = {
    "devices": None, "split_mode": 1, "main_gpu": 0, "tensor_split": None, "kv_overrides": None,
    "vocab_only": False, "check_tensors": False, "use_extra_bufts": True, "no_host": False, "no_alloc": False,
}  # fmt: skip
_CONTEXT_DEFAULTS: dict[str, Any] = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "rope_scaling_type": -1, "pooling_type": -1,
    "attention_type": -1, "flash_attn_type": -1, "yarn_ext_factor": -1.0, "yarn_beta_slow": -1.0, "cb_eval": None,
    "type_k": 1, "type_v": 1, "abort_callback": None, "embeddings": False, "offload_kqv": True, "op_offload": True,
    "kv_unified": False, "samplers": None, "n_samplers": 0,
}  # fmt: skip


def recognised(
    defaults: Any, layouts: tuple[type[c.Structure], ...], told: Callable[[str], None]
) -> type[c.Structure] | None:
    """Return the layout with which a library's defaults make sense, or None.

    Args:
        defaults: The foreign function that returns them; its result type is set here.
        layouts: The layouts to try.
        told: Is called with what did not fit of each.
    """
    for layout in layouts:
        expected = _MODEL_DEFAULTS if layout in MODEL_LAYOUTS else _CONTEXT_DEFAULTS
        defaults.restype, defaults.argtypes = layout, []
        found = defaults()
        wrong = [name for name, value in expected.items() if getattr(found, name) != value]
        if not wrong:
            return layout
        told(f"{layout.__name__}: {wrong[0]} is {getattr(found, wrong[0])}, expected {expected[wrong[0]]}")
    return None
