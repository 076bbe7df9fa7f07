"""The transformers engine: the one module that knows transformers' cache classes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.engines import attention, chat
from unspoken.engines.answers import Answers, heard_from
from unspoken.engines.attention import Watch
from unspoken.engines.batch import Layout, Row, additive, lay_out, option_score
from unspoken.engines.checks import first_position, option_tokens, require_even, require_injectable, require_turns
from unspoken.engines.describe import describe
from unspoken.engines.guided import Columns, guided
from unspoken.engines.pack import Pack, side_by_side
from unspoken.engines.prefilled import prefilled
from unspoken.engines.protocol import Frame, Generation, Hearer, Limits, Loading, Prompt, Source, Turn
from unspoken.engines.queries import Queries
from unspoken.engines.stack import Stack, Weights
from unspoken.errors import ModelNotFound, UsageError
from unspoken.spec import ModelSpec

# Prompts are read in chunks, so that a mask is [512, columns] and never [columns, columns].
CHUNK = 512
# Turns of one packed row: more of them make each decoding step cheaper and the shared attention dearer.
PACK = 24
# Columns kept free for the options of a turn; more of them cost a copy, nothing else.
ROOM_PER_TURN = 16
# How tokenizers write a space: those of bytes, and those of SentencePiece.
SPACES = "Ġ▁"


class TransformersEngine:
    """A causal language model of transformers, with its tokenizer.

    Args:
        model: The model, on one device; it is put into evaluation mode and given this package's attention function.
        tokenizer: Its tokenizer.
        name: For display; by default the model's own.

    Raises:
        UnsupportedModel: If a cache of this kind of model cannot be moved.
    """

    name = "transformers"

    def __init__(self, model: nn.Module, tokenizer: Any, name: str | None = None) -> None:
        import transformers

        attention.register()
        self._model = cast(Any, model.eval())
        # Only this function keeps layers with fewer columns apart, and can be watched.
        self._model.set_attn_implementation(attention.NAME)
        self._tokenizer = tokenizer
        self._template, self._between = chat.rendered(tokenizer), chat.rendered_between(tokenizer)
        self._spec = describe(model, tokenizer, self._template, name or str(self._model.config.name_or_path))
        self._device = next(model.parameters()).device
        self._dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
        self._frames: dict[str, Frame] = {}
        self.dtype = self.precision = str(self._dtype).removeprefix("torch.")
        self.version = f"{transformers.__version__}, torch {torch.__version__}, {self._device.type}"

    @property
    def spec(self) -> ModelSpec:
        """The model, as far as a cache depends on it."""
        return self._spec

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, with no special tokens added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def located(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return for each token of `encode(text)` the characters [start, stop) of the text that it covers.

        They are the tokenizer's own offsets: some leave out the spaces in front of a word.

        Raises:
            UsageError: If the tokenizer is a slow one, which has no offsets.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            raise UsageError(
                f"The tokenizer of '{self._spec.name}', {type(self._tokenizer).__name__}, does not tell which "
                "characters a token covers: it is a slow one.",
                "Load the model with its fast tokenizer: tokenizer.json has to be in its folder.",
            )
        told = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = self._tokenizer.convert_ids_to_tokens(told["input_ids"])
        return tuple(
            # A space that was put in front is said to cover the character behind it.
            (start, start) if not token.strip(SPACES) and text[start:stop].strip().strip(SPACES) else (start, stop)
            for token, (start, stop) in zip(tokens, told["offset_mapping"], strict=True)
        )

    def frame(self, system: str) -> Frame:
        """Return the model's chat template around a user's words, for a system prompt."""
        if system not in self._frames:
            self._frames[system] = chat.cut(self._template, self._between, system, self.encode)
        return self._frames[system]

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Read a prompt and return the cache of `past` and prompt together, kept on the CPU."""
        pack, first = self._opened(prompt, past, start)
        self._read(prompt, pack, first, keep_logits=1)
        positions = torch.arange(first, first + len(prompt.token_ids), dtype=torch.int32)
        return prefilled(pack.read(past, positions), self._spec, prompt, past, self.name)

    def logits(
        self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None, lookahead: int = 0
    ) -> Float[Tensor, "seq vocab"]:
        """Return the float32 logits at every token of a prompt read on top of `past`.

        Args:
            prompt: Tokens to read.
            past: The columns before them.
            start: Position of the first token.
            lookahead: See `unspoken.engines.protocol.Onset`; for prompts of up to 512 tokens.
        """
        pack, first = self._opened(prompt, past, start)
        return self._read(prompt, pack, first, keep_logits=0, lookahead=lookahead)

    def attention(self, prompt: Prompt, past: KVCache, probes: int) -> tuple[Float[Tensor, "heads probes past"], ...]:
        """Return, layer by layer, how much the last tokens of a prompt attend to the columns before it."""
        require_even(past, "transformers")
        watch = Weights(probes, past.columns)
        pack, first = self._opened(prompt, past, None)
        self._read(prompt, pack, first, keep_logits=1, watch=watch)
        return tuple(watch.by_layer[index] for index in range(self._spec.layers))

    def queries(self, prompt: Prompt, past: KVCache, probes: int) -> tuple[Float[Tensor, "heads probes head_dim"], ...]:
        """Return, layer by layer, the queries of a prompt's last tokens; see `unspoken.engines.queries.Querying`."""
        watch = Queries(probes)
        pack, first = self._opened(prompt, past, None)
        self._read(prompt, pack, first, keep_logits=1, watch=watch)
        return tuple(watch.by_layer[index] for index in range(self._spec.layers))

    def embed(self, token_ids: Sequence[int]) -> Float[Tensor, "new hidden"]:
        """Return what enters the first layer for some tokens."""
        return self._stack.embed(token_ids)

    def embeddings(self) -> Float[Tensor, "vocab hidden"]:
        """Return the whole table of input embeddings, not a copy."""
        return cast(Tensor, self._stack.base.embed_tokens.weight)

    def unembeddings(self) -> Float[Tensor, "vocab hidden"]:
        """Return the matrix that makes logits, not a copy."""
        return cast(Tensor, self._stack.head.weight)

    def through(
        self,
        residuals: Float[Tensor, "new hidden"],
        layers: Sequence[KVLayer],
        at: Int[Tensor, " new"],
        positions: Int[Tensor, " new"],
    ) -> tuple[Float[Tensor, "new hidden"], list[KVLayer]]:
        """Run residuals through some neighbouring layers, which write their columns while they go."""
        return self._stack.through(residuals, layers, at, positions)

    def finish(self, residuals: Float[Tensor, "new hidden"]) -> Float[Tensor, "new hidden"]:
        """Return what leaves the last layer as it enters the head: after the final norm."""
        return self._stack.finish(residuals)

    def generate(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None = None) -> tuple[Generation, ...]:
        """Answer several turns in packs of at most `PACK`; each sees only its own past and prompt."""
        require_turns(turns, limits)
        return tuple(
            made
            for at in range(0, len(turns), PACK)
            for made in self._generate_pack(turns[at : at + PACK], limits, heard_from(hear, at))
        )

    def guided(
        self, past: Sequence[Columns], layout: Layout, keep: Int[Tensor, " kept"], heard: list[Tensor] | None = None
    ) -> Float[Tensor, "kept vocab"]:
        """Return logits with the graph that leads back to the columns; see `unspoken.engines.guided.Guiding`."""
        return guided(self._model, past, layout, keep, heard)

    def changed(self, change: Callable[[nn.Module], None], name: str) -> TransformersEngine:
        """Return an engine on a copy of the model that `change` has altered; it takes as much memory again."""
        model: nn.Module = copy.deepcopy(self._model)
        change(model)
        return TransformersEngine(model, self._tokenizer, name)

    def close(self) -> None:
        """Give the weights back; what memory they had is free once nothing else refers to them."""
        self._model = None

    @torch.inference_mode()
    def _generate_pack(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None) -> list[Generation]:
        began = time.perf_counter()
        room = sum(len(turn.prompt.token_ids) + ROOM_PER_TURN + limits.new_tokens for turn in turns)
        pack = self._pack([turn.past for turn in turns], room)
        rows = [self._row(turn, where, limits) for turn, where in zip(turns, pack.ranges, strict=True)]
        layout = lay_out(rows, pack.columns)
        reads = [*layout.last, *(at for options in layout.option_columns for option in options for at in option)]
        grafts = {at: turn.onset.graft for at, turn in zip(layout.last, turns, strict=True) if turn.onset.graft}
        with self._stack.grafted(grafts) if grafts else nullcontext():
            logits = self._forward(pack, layout, keep=torch.tensor(reads))
        logprobs, line = logits.log_softmax(dim=-1), {at: number for number, at in enumerate(reads)}
        first = [logprobs[line[at]] for at in layout.last]
        first_token = time.perf_counter()
        scores = [
            tuple(
                option_score(first[i], logprobs[[line[at] for at in columns]], option)
                for option, columns in zip(row.options, layout.option_columns[i], strict=True)
            )
            for i, row in enumerate(rows)
        ]
        answers = Answers(len(rows), limits, self.ends, self.decode, hear)
        self._go_on(pack, layout, rows, first, answers)
        seconds = first_token - began, time.perf_counter() - began
        return answers.generations([row.token_ids for row in rows], first, scores, seconds)

    def _go_on(
        self, pack: Pack, layout: Layout, rows: Sequence[Row], first: Sequence[Tensor], answers: Answers
    ) -> None:
        """Make the answers token by token, all that are going in one step."""
        visible, step = layout.allowed[list(layout.last)], 0
        logits = dict(enumerate(first))
        while True:
            taken = {i: answers.take(i, logits[i]) for i in logits}
            going = [i for i, token in taken.items() if token is not None]
            if not going:
                return
            fresh = torch.zeros((len(rows), len(going)), dtype=torch.bool)
            fresh[going, range(len(going))] = True
            visible = torch.cat((visible, fresh), dim=1)
            positions = torch.tensor([rows[i].start + len(rows[i].token_ids) + step for i in going])
            ids = torch.tensor([taken[i] for i in going])
            made = self._forward(pack, Layout(ids, positions, visible[going]), keep=0)
            logits, step = dict(zip(going, made, strict=True)), step + 1

    def _row(self, turn: Turn, past: range, limits: Limits) -> Row:
        options, onset = option_tokens(turn, limits, self._spec, self.encode), turn.onset
        start = first_position(turn.prompt, turn.past, onset.position, self._spec)
        return Row(past, turn.prompt.token_ids, options, start, onset.lookahead)

    def _opened(self, prompt: Prompt, past: KVCache | None, start: int | None) -> tuple[Pack, int]:
        return self._pack([past], len(prompt.token_ids)), first_position(prompt, past, start, self._spec)

    @torch.inference_mode()
    def _read(
        self,
        prompt: Prompt,
        pack: Pack,
        first: int,
        keep_logits: int,
        lookahead: int = 0,
        watch: Watch | None = None,
    ) -> Float[Tensor, "seq vocab"]:
        ids, kept = prompt.token_ids, []
        for at in range(0, len(ids), CHUNK):
            before = pack.columns + at
            layout = lay_out([Row(range(before), ids[at : at + CHUNK], (), first + at, lookahead)], before)
            kept.append(self._forward(pack, layout, keep_logits, watch))
        return torch.cat(kept) if keep_logits == 0 else kept[-1]

    def _forward(
        self, pack: Pack, layout: Layout, keep: int | Int[Tensor, " kept"], watch: Watch | None = None
    ) -> Float[Tensor, "kept vocab"]:
        """Return float32 logits at the last `keep` tokens (0: all of them), or at the tokens it lists."""
        logits: Tensor = self._model(
            input_ids=layout.token_ids[None].to(self._device),
            position_ids=layout.positions[None].to(self._device),
            attention_mask=additive(layout.allowed, self._dtype).to(self._device),
            past_key_values=pack.inner,
            use_cache=True,
            logits_to_keep=keep,
            gaps=None if pack.absent is None else attention.Gaps(pack.absent, layout.lenient),
            watch=watch,
        ).logits
        return logits[0].to("cpu", torch.float32)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        configured = getattr(self._model.generation_config, "eos_token_id", None)
        many = configured if isinstance(configured, list) else [configured]
        return frozenset(int(token) for token in (*many, self._tokenizer.eos_token_id) if token is not None)

    def _pack(self, pasts: Sequence[KVCache | None], room: int) -> Pack:
        for past in pasts:
            if past is not None:
                require_injectable(past, self._spec)
        return side_by_side(pasts, self._spec.layers, room, self._device, self._dtype)

    @cached_property
    def _stack(self) -> Stack:
        return Stack(self._model)


def load(source: Source, loading: Loading) -> TransformersEngine:
    """Load a model folder in Hugging Face's layout.

    Args:
        source: The model's files: a folder with config.json, safetensors weights and a tokenizer.
        loading: Element type and device; a device that is not `cpu` (`cuda`, `mps`) is written but untested.

    Raises:
        ModelNotFound: If the folder cannot be read as a model.
        UnsupportedModel: If a cache of this kind of model cannot be moved.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from unspoken.engines.describe import refuse_unsupported

    loading.refuse("transformers", "kv_type", "context", "gpu_layers", "threads")
    dtype = loading.dtype or "float32"
    if dtype not in DTYPES:
        raise UsageError(f"There is no element type '{dtype}'.", f"Choose one of {', '.join(DTYPES)}.")
    folder, name = source.folder()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(folder)
        refuse_unsupported(config)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelNotFound(
            f"The folder {folder} cannot be loaded as a model: {str(error).splitlines()[0]}",
            "It must hold config.json, *.safetensors and tokenizer files of a causal language model.",
        ) from error
    return TransformersEngine(model.to(loading.device or "cpu"), tokenizer, name)
