"""smolagents' own model class, unmodified: one agent's run leaves a cache, the next one's starts from it.

unspoken serve &
python examples/smolagents_hand_over.py
"""

import sys

from smolagents import ChatMessage, OpenAIModel

from unspoken.client import URL, Client

REPORT = (
    "The northern station is run by Marta. She keeps three dogs, and the supply plane comes on Friday. "
    "The southern station has been empty since the flood."
)


def main(url: str = URL) -> str:
    """Let Lyra read, and CC answer from her cache."""
    name = Client(url).models()[0]

    def model(tokens: int = 32, **transfer: object) -> OpenAIModel:
        extra = {"kv_transfer_params": transfer}
        return OpenAIModel(name, api_base=f"{url}/v1", api_key="any", extra_body=extra, max_tokens=tokens)

    def user(text: str) -> list[ChatMessage]:
        return [ChatMessage(role="user", content=text)]

    read = model(1, keep="content").generate(user(REPORT))
    handle = read.raw.model_extra["kv_transfer_params"]["handle"]
    question = "Who runs the northern station? Answer briefly."
    answer = model(handles=[handle]).generate(user(question))
    alone = model().generate(user(question))
    print(f"CC says: {answer.content}\nWithout Lyra's cache: {alone.content}")
    return str(answer.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
