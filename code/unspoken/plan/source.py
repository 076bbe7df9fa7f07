"""From a model's name to its sizes, with what is on this machine. Nothing is fetched, no tensor is read."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unspoken.errors import ModelNotFound, UnsupportedModel
from unspoken.modelstore import Listed, catalogue
from unspoken.plan.shape import (
    BITS_PER_WEIGHT,
    KNOWN,
    LARGEST_LAYERS,
    LARGEST_SIZE,
    TYPICAL,
    Shape,
    Weights,
    quantised,
    spread,
    unsupported,
)

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Model:
    """A model to plan for.

    Attributes:
        shape: Its sizes.
        choices: The weights it may have, the most precise first: a file's own, or typical quantisations of it.
        source: Where the sizes come from.
        arguments: What to give a command as the model, for the weights that need no file of the user's.
        stored_bytes: Bytes of its weights on this machine, where there are some that llama.cpp cannot use.
    """

    shape: Shape
    choices: tuple[Weights, ...]
    source: str
    arguments: Mapping[str, str]
    stored_bytes: int | None = None

    def argument(self, weights: Weights) -> str:
        """Return what to give a command as the model; `FILE` where the user has to bring one."""
        return self.arguments.get(weights.name, "FILE")


def find(name: str) -> Model:
    """Return the sizes of a model: a .gguf file, a folder with config.json, or a name of the catalogue.

    Raises:
        ModelNotFound: If nothing on this machine says how large it is.
        UnsupportedModel: If its layers do not all keep the same keys and values per token.
    """
    path = Path(name)
    if os.path.isfile(name) and path.suffix == ".gguf":
        return _in_file(path, path.stem, shlex.quote(name))
    if os.path.isdir(name):
        return _in_folder(path, path.resolve().name)
    listed = catalogue().get(name)
    found = None if listed is None else _kept(name, listed)
    if found is not None:
        return found
    config = _in_hub_cache(name if listed is None else str(listed.hub), "config.json")
    if config is None and name not in KNOWN:
        raise _absent(name, listed)
    model = _typical(KNOWN[name], "a table of shapes") if config is None else _in_folder(config.parent, name)
    return model if listed is None else replace(model, arguments=_fetched(name, listed))


def _typical(shape: Shape, source: str, stored_bytes: int | None = None) -> Model:
    return Model(shape, tuple(quantised(shape, kind) for kind in TYPICAL), source, {}, stored_bytes)


def _absent(name: str, listed: Listed | None) -> ModelNotFound:
    if listed is not None:
        return ModelNotFound(
            f"The files of '{name}' are not on this machine, and a plan fetches nothing.",
            f"Load it once, with `unspoken prove --model {name}` for instance, or give a folder or a .gguf file.",
        )
    return ModelNotFound(
        f"There is no model '{name}' on this machine: no such folder or GGUF file, and no such name.",
        f"Known names: {', '.join(sorted(catalogue()))}; or give a folder or a .gguf file.",
    )


def _fetched(name: str, listed: Listed) -> dict[str, str]:
    """Return the kind of quantisation that a command fetches itself, given the name."""
    stem = "" if listed.gguf is None else Path(listed.gguf.file).stem.upper()
    return {kind: name for kind in BITS_PER_WEIGHT if stem.endswith(kind)}


def _kept(name: str, listed: Listed) -> Model | None:
    """Return a model of the catalogue whose GGUF, or what was converted from it, is on this machine."""
    if listed.package is None:
        file = None if listed.gguf is None else _in_hub_cache(listed.gguf.repository, listed.gguf.file)
        return None if file is None else _in_file(file, name, name)
    from unspoken.modelstore.convert import conversion_folder
    from unspoken.modelstore.pypi import kept_gguf

    if kept_gguf(listed.package).exists():
        return _in_file(kept_gguf(listed.package), name, name)
    folder = conversion_folder(listed.package.sha256)
    if not (folder / "config.json").exists():
        return None
    shape, kind = _in_folder(folder, name).shape, Path(listed.package.member).stem.rpartition(".")[2]
    weights = spread(shape, listed.package.bytes, kind, estimated=False)
    return Model(shape, (weights,), "the catalogue and the converted files", {kind: name})


def _in_file(path: Path, name: str, argument: str) -> Model:
    from unspoken.plan.gguf_sizes import read_gguf

    shape, weights = read_gguf(path)
    return Model(replace(shape, name=name), (weights,), "the header of its GGUF file", {weights.name: argument})


def _in_hub_cache(repository: str, file: str) -> Path | None:
    if repository.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _in_folder(folder: Path, name: str) -> Model:
    try:
        fields = json.loads((folder / "config.json").read_bytes())
        stored = sum(each.stat().st_size for each in folder.glob("*.safetensors"))
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"The folder {folder} holds no model: there is no config.json.", "Give a folder with one."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"{folder / 'config.json'} cannot be read as JSON.", "Fetch or copy the model's configuration again."
        ) from error
    if not isinstance(fields, dict):
        raise ModelNotFound(
            f"{folder / 'config.json'} describes no model.", "Give a folder with a model's config.json."
        )
    shape = _described(fields, name, stored)
    return _typical(shape, "config.json" + (" and the sizes of safetensors" if stored else ""), stored or None)


def _described(fields: Mapping[str, Any], name: str, stored_bytes: int) -> Shape:
    _refuse_unsupported(fields)

    def size(key: str, otherwise: int | None = None) -> int:
        value = fields.get(key)
        value = otherwise if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_SIZE:
            raise ModelNotFound(
                f"The config.json of '{name}' gives {value!r} as {key}.",
                "Give the configuration of a causal language model.",
            )
        return value

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    shape = Shape(
        name=name,
        layers=size("num_hidden_layers"),
        hidden=hidden,
        feed_forward=size("intermediate_size"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        vocabulary=size("vocab_size"),
        context=size("max_position_embeddings"),
        tied=fields.get("tie_word_embeddings") is True,
    )
    if shape.layers > LARGEST_LAYERS:
        raise ModelNotFound(f"The config.json of '{name}' claims {shape.layers} layers.", "Fetch it again.")
    if not any("expert" in key and fields[key] for key in fields):
        return shape
    counted = stored_bytes // BYTES_PER_WEIGHT.get(str(fields.get("dtype") or fields.get("torch_dtype")), 1 << 62)
    if counted <= 2 * shape.embedding_parameters + hidden or fields.get("quantization_config"):
        raise UnsupportedModel(
            f"The weights of '{name}' cannot be counted from config.json alone: it has experts.",
            "Give a folder with its safetensors, or a .gguf file.",
        )
    return replace(shape, counted=counted)


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    kinds = set(map(str, fields.get("layer_types") or ["full_attention"]))
    window = None if fields.get("use_sliding_window") is False else fields.get("sliding_window")
    recurrent = kinds - {"full_attention", "sliding_attention"}
    sliding = "sliding_attention" in kinds or (window is not None and "layer_types" not in fields)
    reasons = {
        "it is an encoder-decoder model": bool(fields.get("is_encoder_decoder")),
        "it keeps compressed latents instead of keys and values (MLA)": fields.get("kv_lora_rank") is not None,
        "some layers keep a recurrent state instead of columns": bool(recurrent),
        f"its layers forget columns outside a sliding window of {window}": sliding,
    }
    for reason, holds in reasons.items():
        if holds:
            raise unsupported(str(fields.get("model_type", "unknown")), reason)
