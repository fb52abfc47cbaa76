"""Reading several pipes at once, with a limit for all of it and one for silence."""

import os
import selectors
import time
from typing import IO


class Pipes:
    """The reading ends of a child's pipes, closed when the block ends."""

    def __init__(self, *streams: IO[bytes]) -> None:
        self._streams = streams
        self._contents = [bytearray() for _ in streams]
        self._selector = selectors.DefaultSelector()
        for number, stream in enumerate(streams):
            self._selector.register(stream, selectors.EVENT_READ, number)

    def __enter__(self) -> "Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for stream in self._streams:
            stream.close()

    @property
    def texts(self) -> tuple[str, ...]:
        """What was read from each, in the order of the streams."""
        return tuple(content.decode("utf-8", "replace") for content in self._contents)

    def read(self, timeout_s: float, silence_s: float | None = None) -> str | None:
        """Read until every pipe is closed at its other end; returns what took too long, or None."""
        began = heard = time.monotonic()
        while self._selector.get_map():
            now = time.monotonic()
            left = began + timeout_s - now
            quiet = left if silence_s is None else heard + silence_s - now
            if left <= 0:
                return f"did not end within {timeout_s:g} s"
            if quiet <= 0:
                return f"wrote nothing for {silence_s:g} s"
            for key, _ in self._selector.select(min(left, quiet)):
                heard = time.monotonic()
                if chunk := os.read(key.fd, 65536):
                    self._contents[key.data] += chunk
                else:
                    self._selector.unregister(key.fileobj)
        return None
