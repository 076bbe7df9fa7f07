"""What goes over the wire: OpenAI's chat completions, with `kv_transfer_params`, and caches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_MESSAGES, MOST_STOPS, MOST_HANDLES, MOST_TOKENS = 512, 4, 16, 8192
Handle = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
AgentName = Annotated[str, Field(min_length=1, max_length=64)]


class TextPart(BaseModel):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="after")
    def _is_text(self) -> Message:
        if any("\ud800" <= letter <= "\udfff" for letter in self.text):
            raise ValueError("the words are no text: they have halves of letters in them")
        return self

    @property
    def text(self) -> str:
        """Its words."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class KVTransfer(BaseModel):
    """What is handed over with a completion.

    Attributes:
        handles: Caches to start from, in this order. Content columns (`keep: content`) stand before the last message's
            words; of a whole conversation (`keep: whole`) there can be one alone, and the messages go on from it.
        keep: What is kept of this completion: the columns of what was said (`content`), the whole conversation
            (`whole`), or nothing.
        to: Agents that may go on from what is kept, besides its owner.
        ttl_seconds: How long it is kept; the server's limit at most.
    """

    model_config = ConfigDict(extra="forbid")
    handles: list[Handle] = Field(default_factory=list, max_length=MOST_HANDLES)
    keep: Literal["content", "whole"] | None = None
    to: list[AgentName] = Field(default_factory=list, max_length=64)
    ttl_seconds: Annotated[float, Field(gt=0)] | None = None


class StreamOptions(BaseModel):
    """What is told in a stream besides the words."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Completion(BaseModel):
    """A chat completion that is wanted. Fields that are not known are ignored, unless they would change the answer."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    kv_transfer_params: KVTransfer | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and any(not stop for stop in ([value] if isinstance(value, str) else value)):
            raise ValueError("a stop text is empty")
        return value

    @model_validator(mode="after")
    def _known(self) -> Completion:
        extra = self.model_extra or {}
        asked = sorted(name for name in CHANGING if extra.get(name) not in (None, False, [], {}, 0, "none"))
        if asked:
            raise ValueError(f"this server has no {', '.join(asked)}")
        if self.messages[-1].role != "user":
            raise ValueError("the last message has to be the user's")
        return self


CHANGING = (
    *("tools", "functions", "tool_choice", "response_format", "logprobs", "logit_bias", "audio", "modalities"),
    *("frequency_penalty", "presence_penalty", "prediction", "web_search_options"),
)


class Kept(BaseModel):
    """A cache that the server keeps.

    Attributes:
        handle: Its name.
        columns: Its columns.
        bytes: Its size.
        expires_at: Seconds of UTC since 1970 at which it is gone.
        whole: Whether it is a whole conversation; else it is columns of content that can be put anywhere.
        sealed_by: The known sender that vouches for it.
    """

    handle: str
    columns: int
    bytes: int
    expires_at: float
    whole: bool
    sealed_by: str | None = None


class Usage(BaseModel):
    """Tokens of a completion.

    Attributes:
        prompt_tokens: What the model had before it when it answered, columns that were handed over included.
        completion_tokens: What it wrote.
        total_tokens: Both.
        prompt_tokens_details: `cached_tokens`: of the prompt, what it did not have to read.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class Problem(BaseModel):
    """Why a request was refused."""

    error: dict[str, Any]
