"""The sizes of a model: those its cache depends on, and where the bytes of its weights lie."""

from __future__ import annotations

from dataclasses import dataclass

from unspoken.errors import UnsupportedModel

# Bits per weight of whole files, as llama.cpp's tools/quantize/README.md lists them for Llama-3.1-8B. In other
# models they differ by a few per cent, because some matrices are kept in more bits than others.
BITS_PER_WEIGHT = {
    "F16": 16.0005, "Q8_0": 8.5008, "Q5_K_M": 5.7036, "Q4_K_M": 4.8944, "Q3_K_M": 3.9960, "Q2_K": 3.1593,
}  # fmt: skip
# What a plan chooses from where there is no file, the most precise first. Fewer bits are named as a way out only.
TYPICAL = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
# Far beyond any model; what a damaged or invented description claims is refused before it is worked with.
LARGEST_LAYERS = 4096
LARGEST_SIZE = 1 << 31


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on.

    Attributes:
        name: For display.
        layers: Layers, each of which keeps keys and values.
        hidden: Width of the residual stream.
        feed_forward: Width inside a feed-forward block.
        heads: Heads of queries.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head, the same for keys and values.
        vocabulary: Tokens, which is the width of the logits.
        context: Positions the model was made for.
        tied: Whether the embedding is the output matrix as well.
        counted: Number of weights, where it was counted in a file.
    """

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied: bool = False
    counted: int | None = None

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer of a plain transformer: four of attention, three of the gated block, two norms."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, which are as many as those of the output matrix."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Weights of the whole model: as counted, else by the shape of a plain transformer."""
        if self.counted is not None:
            return self.counted
        matrices = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + matrices + self.hidden


@dataclass(frozen=True)
class Weights:
    """Where the bytes of a model's weights lie.

    Attributes:
        name: The kind of quantisation, or the file.
        layer_bytes: Bytes of each layer, from the first to the last.
        embedding_bytes: Bytes of the embedding; llama.cpp keeps it in RAM always.
        output_bytes: Bytes of everything behind the layers: the last norm and the output matrix, if there is one.
        tied: Whether the embedding is the output matrix as well.
        estimated: Whether these are estimates, not the sizes of a file.
    """

    name: str
    layer_bytes: tuple[int, ...]
    embedding_bytes: int
    output_bytes: int
    tied: bool
    estimated: bool

    @property
    def total_bytes(self) -> int:
        """Bytes of all of it, once."""
        return sum(self.layer_bytes) + self.embedding_bytes + self.output_bytes

    @property
    def output_on_gpu_bytes(self) -> int:
        """Bytes that computing logits on a GPU takes there: a tied embedding is copied to it."""
        return self.output_bytes + (self.embedding_bytes if self.tied else 0)


# For a plan without any file. Llama: config.json of meta-llama/Llama-3.1-8B-Instruct; Mistral: of
# mistralai/Mistral-7B-Instruct-v0.3.
KNOWN = {
    "llama-3.1-8b": Shape("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, 131072),
    "mistral-7b": Shape("mistral-7b", 32, 4096, 14336, 32, 8, 128, 32768, 32768),
}


def spread(shape: Shape, total_bytes: int, name: str, *, estimated: bool) -> Weights:
    """Return weights of a known total size, as if every matrix had the same bits per weight.

    Real files keep some matrices in more bits than others, the output matrix mostly; the difference is a part
    of a layer's bytes.
    """
    per_weight = total_bytes / shape.parameters
    embedding = round(shape.embedding_parameters * per_weight)
    output = round((shape.hidden + (0 if shape.tied else shape.embedding_parameters)) * per_weight)
    each, rest = divmod(total_bytes - embedding - output, shape.layers)
    layers = tuple(each + (1 if index < rest else 0) for index in range(shape.layers))
    return Weights(name, layers, embedding, output, shape.tied, estimated)


def quantised(shape: Shape, kind: str) -> Weights:
    """Return the estimated weights of a model in a kind of quantisation, such as `Q4_K_M`."""
    return spread(shape, round(shape.parameters * BITS_PER_WEIGHT[kind] / 8), kind, estimated=True)


def unsupported(kind: str, reason: str) -> UnsupportedModel:
    """Return the error for a kind of model whose cache is not the same number of bytes for every token and layer."""
    return UnsupportedModel(
        f"Caches of '{kind}' models cannot be planned: {reason}.",
        "Use a model with full attention and one RoPE, such as Llama, Mistral (v0.2 on), Qwen2.5 or Qwen3.",
    )
