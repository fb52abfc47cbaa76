"""Answers to one conversation after another, as a stream.

Runs in the training interpreter (see run_model.py). Each message that arrives is {"messages",
"system", "temperature"}; any other one that arrives during an answer ends that.
"""

import traceback

from run_model import Link, agreed, load
from talking import Generate, TooLong


def main() -> None:
    link = Link()
    chat = load(link.receive())
    agreed(link, chat.engine)
    Generate(chat.engine, taken_back=link.arrived)
    link.send(kind="ready")
    while True:
        asked = link.receive()
        if "messages" in asked:
            try:
                for text in chat.stream_chat(
                    asked["messages"], asked["system"], temperature=asked["temperature"]
                ):
                    link.send(kind="text", text=text)
                link.send(kind="answered")
            except (TooLong, RuntimeError) as error:
                traceback.print_exc()
                link.send(kind="failed", message=str(error))


if __name__ == "__main__":
    main()
