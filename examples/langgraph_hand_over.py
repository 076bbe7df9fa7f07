"""Two nodes of a LangGraph graph: Lyra reads a report, CC answers from her cache. The words do not pass between them.

unspoken serve &
python examples/langgraph_hand_over.py
"""

import sys
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from unspoken.client import URL, Client

REPORT = (
    "The northern station is run by Marta. She keeps three dogs, and the supply plane comes on Friday. "
    "The southern station has been empty since the flood."
)


class State(TypedDict, total=False):
    """What the nodes pass on: a handle, no words."""

    report: str
    question: str
    handle: str
    answer: str


def main(url: str = URL) -> str:
    """Run the graph and return CC's answer."""
    client = Client(url)

    def lyra(state: State) -> State:
        read = client.complete(state["report"], keep="content", max_tokens=1)
        return {"handle": read.kept.handle if read.kept else "", "report": ""}

    def cc(state: State) -> State:
        answer = client.complete(state["question"], handles=[state["handle"]], max_tokens=32)
        print(f"CC skipped {answer.skipped_tokens} of {answer.prompt_tokens} tokens and says: {answer.text}")
        return {"answer": answer.text}

    graph = StateGraph(State)
    graph.add_node("lyra", lyra)
    graph.add_node("cc", cc)
    graph.add_edge(START, "lyra")
    graph.add_edge("lyra", "cc")
    graph.add_edge("cc", END)
    done = graph.compile().invoke({"report": REPORT, "question": "Who runs the northern station? Answer briefly."})
    return str(done["answer"])


if __name__ == "__main__":
    main(*sys.argv[1:])
