"""The transformers engine: the one module that knows transformers' cache classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.engines import attention, chat
from unspoken.engines.answers import Answers, heard_from
from unspoken.engines.batch import Layout, Row, additive, lay_out, option_score
from unspoken.engines.checks import first_position, option_tokens, require_injectable, require_turns
from unspoken.engines.describe import describe
from unspoken.engines.prefilled import prefilled
from unspoken.engines.protocol import Frame, Generation, Hearer, Limits, Loading, Prompt, Source, Turn
from unspoken.errors import ModelNotFound, UsageError
from unspoken.spec import ModelSpec

# Prompts are read in chunks, so that a mask is [512, columns] and never [columns, columns].
CHUNK = 512
# Turns of one packed row: more of them make each decoding step cheaper and the shared attention dearer.
PACK = 24
# Columns kept free for the options of a turn; more of them cost a copy, nothing else.
ROOM_PER_TURN = 16


class TransformersEngine:
    """A causal language model of transformers, with its tokenizer.

    Args:
        model: The model, in evaluation mode, on one device.
        tokenizer: Its tokenizer.
        name: For display; by default the model's own.

    Raises:
        UnsupportedModel: If a cache of this kind of model cannot be moved.
    """

    name = "transformers"

    def __init__(self, model: nn.Module, tokenizer: Any, name: str | None = None) -> None:
        import transformers

        self._model = cast(Any, model.eval())
        self._tokenizer = tokenizer
        self._template = chat.rendered(tokenizer)
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

    def frame(self, system: str) -> Frame:
        """Return the model's chat template around a user's words, for a system prompt."""
        if system not in self._frames:
            self._frames[system] = chat.cut(self._template, system, self.encode)
        return self._frames[system]

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Read a prompt and return the cache of `past` and prompt together, kept on the CPU."""
        inner, first = self._opened(prompt, past, start)
        self._read(prompt, inner, past, first, keep_logits=1)
        positions = torch.arange(first, first + len(prompt.token_ids), dtype=torch.int32)
        if past is not None:
            positions = torch.cat((past.positions, positions))
        layers = [
            KVLayer(index, layer.keys[0].contiguous().cpu(), layer.values[0].contiguous().cpu(), positions)
            for index, layer in enumerate(inner.layers)
        ]
        return prefilled(layers, self._spec, prompt, past, self.name)

    def logits(
        self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None
    ) -> Float[Tensor, "seq vocab"]:
        """Return the float32 logits at every token of a prompt read on top of `past`."""
        inner, first = self._opened(prompt, past, start)
        return self._read(prompt, inner, past, first, keep_logits=0)

    def generate(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None = None) -> tuple[Generation, ...]:
        """Answer several turns in packs of at most `PACK`; each sees only its own past and prompt."""
        require_turns(turns, limits)
        return tuple(
            made
            for at in range(0, len(turns), PACK)
            for made in self._generate_pack(turns[at : at + PACK], limits, heard_from(hear, at))
        )

    def close(self) -> None:
        """Give the weights back; what memory they had is free once nothing else refers to them."""
        self._model = None

    @torch.inference_mode()
    def _generate_pack(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None) -> list[Generation]:
        began = time.perf_counter()
        room = sum(len(turn.prompt.token_ids) + ROOM_PER_TURN + limits.new_tokens for turn in turns)
        inner, ranges = self._inner([turn.past for turn in turns], room)
        rows = [self._row(turn, where, limits) for turn, where in zip(turns, ranges, strict=True)]
        layout = lay_out(rows, max((where.stop for where in ranges), default=0))
        reads = [*layout.last, *(at for options in layout.option_columns for option in options for at in option)]
        logits = self._forward(inner, layout.token_ids, layout.positions, layout.allowed, keep=torch.tensor(reads))
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
        answers = Answers(len(rows), limits, self._end_tokens(), self.decode, hear)
        self._go_on(inner, layout, rows, first, answers)
        seconds = first_token - began, time.perf_counter() - began
        return answers.generations([row.token_ids for row in rows], first, scores, seconds)

    def _go_on(
        self, inner: Any, layout: Layout, rows: Sequence[Row], first: Sequence[Tensor], answers: Answers
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
            made = self._forward(inner, ids, positions, visible[going], keep=0)
            logits, step = dict(zip(going, made, strict=True)), step + 1

    def _row(self, turn: Turn, past: range, limits: Limits) -> Row:
        options = option_tokens(turn, limits, self._spec, self.encode)
        return Row(past, turn.prompt.token_ids, options, first_position(turn.prompt, turn.past, None, self._spec))

    def _opened(self, prompt: Prompt, past: KVCache | None, start: int | None) -> tuple[Any, int]:
        return self._inner([past], len(prompt.token_ids))[0], first_position(prompt, past, start, self._spec)

    @torch.inference_mode()
    def _read(
        self, prompt: Prompt, inner: Any, past: KVCache | None, first: int, keep_logits: int
    ) -> Float[Tensor, "seq vocab"]:
        ids = prompt.token_ids
        before = 0 if past is None else past.columns
        kept = []
        for at in range(0, len(ids), CHUNK):
            layout = lay_out([Row(range(before + at), ids[at : at + CHUNK], (), first + at)], before + at)
            kept.append(self._forward(inner, layout.token_ids, layout.positions, layout.allowed, keep=keep_logits))
        return torch.cat(kept) if keep_logits == 0 else kept[-1]

    def _forward(
        self,
        inner: Any,
        token_ids: Int[Tensor, " new"],
        positions: Int[Tensor, " new"],
        allowed: Bool[Tensor, "new total"],
        keep: int | Int[Tensor, " kept"],
    ) -> Float[Tensor, "kept vocab"]:
        """Return float32 logits at the last `keep` tokens (0: all of them), or at the tokens it lists."""
        logits: Tensor = self._model(
            input_ids=token_ids[None].to(self._device),
            position_ids=positions[None].to(self._device),
            attention_mask=additive(allowed, self._dtype).to(self._device),
            past_key_values=inner,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits[0].to("cpu", torch.float32)

    def _end_tokens(self) -> set[int]:
        configured = getattr(self._model.generation_config, "eos_token_id", None)
        many = configured if isinstance(configured, list) else [configured]
        return {int(token) for token in (*many, self._tokenizer.eos_token_id) if token is not None}

    def _inner(self, pasts: Sequence[KVCache | None], room: int) -> tuple[Any, list[range]]:
        """Build transformers' cache with the distinct pasts side by side, and say which columns are whose.

        They are copied once, with room for as many more columns as will be needed.
        """
        from transformers import DynamicCache

        from unspoken.engines.room import roomy_cache

        ranges: dict[int, range] = {id(None): range(0)}
        distinct: list[KVCache] = []
        for past in pasts:
            if past is not None and id(past) not in ranges:
                require_injectable(past, self._spec)
                begin = sum(each.columns for each in distinct)
                ranges[id(past)] = range(begin, begin + past.columns)
                distinct.append(past)
        if not distinct:
            return DynamicCache(), [range(0) for _ in pasts]
        layers = [[past.layers[index] for past in distinct] for index in range(self._spec.layers)]
        return roomy_cache(layers, room, self._device, self._dtype), [ranges[id(past)] for past in pasts]


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
    attention.register()
    try:
        config = AutoConfig.from_pretrained(folder)
        refuse_unsupported(config)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation=attention.NAME
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelNotFound(
            f"The folder {folder} cannot be loaded as a model: {str(error).splitlines()[0]}",
            "It must hold config.json, *.safetensors and tokenizer files of a causal language model.",
        ) from error
    return TransformersEngine(model.to(loading.device or "cpu"), tokenizer, name)
