"""Rows that repeat: the same row, the same prompt with another answer, the same prompt in another
file.

Each row leaves four 8-byte numbers. They are kept apart by the prompt's digest and go to temporary
files beyond a million rows, so the memory stays the same at any size. Digests are Python's own
64-bit string hashes of this
process: among ten million prompts one false repeat is expected in 400,000 runs (n^2 / 2^65).
"""

import heapq
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from iisft.data.check.findings import KEPT, Findings, RowFinding, flaw

_PARTS = 64
_IN_MEMORY = 1_000_000
_COLUMNS = 4  # digest of the prompt, digest of the answer, row, line * 256 + file


def prompt_digest(staged: dict[str, Any]) -> int:
    """64 bits of everything before the last answer, the same for an Alpaca row and for the same row
    as messages.
    """
    messages = staged.get("messages")
    if messages is None:
        instruction, text = staged["instruction"], staged["input"]
        question = f"{instruction}\n{text}" if instruction and text else instruction or text
        if len(staged) == 3:
            return hash(question)
        earlier = tuple(part for turn in staged.get("history", ()) for part in turn)
        return _digest((*earlier, question), staged.get("system", ""))
    return _digest(
        tuple(message["content"] for message in messages[:-1]), staged["system"], staged["tools"]
    )


def answer_of(staged: dict[str, Any]) -> str:
    """The last answer of a staged row."""
    messages = staged.get("messages")
    answer: str = staged["output"] if messages is None else messages[-1]["content"]
    return answer


def _digest(contents: tuple[str, ...], system: str, tools: str = "") -> int:
    if len(contents) == 1 and not system and not tools:
        return hash(contents[0])
    return hash((contents, system, tools))


class Repeats:
    """Collects rows of up to 256 files and tells which repeat.

    A context manager: it may hold temporary files.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._parts = [array("q") for _ in range(_PARTS)]
        self._spilled: list[IO[bytes]] = []
        self._held = 0

    def __enter__(self) -> "Repeats":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._spilled:
            stream.close()

    def add(self, file: int, row: int, line: int, staged: dict[str, Any]) -> None:
        """One row of the file with this index in `files`."""
        prompt = prompt_digest(staged)
        self._parts[prompt % _PARTS].extend(
            (prompt, hash(answer_of(staged)), row, line << 8 | file)
        )
        self._held += 1
        if self._held >= _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        if not self._spilled:
            self._spilled = [tempfile.TemporaryFile() for _ in range(_PARTS)]  # noqa: SIM115 - closed by __exit__
        for number, stream in enumerate(self._spilled):
            self._parts[number].tofile(stream)
            self._parts[number] = array("q")
        self._held = 0

    def report(self, findings: Findings) -> None:
        """Add what repeats to the findings, the lowest rows of each kind."""
        duplicates, conflicts, leaks = _Lowest(), _Lowest(), _Lowest()
        for part in self._joined_parts():
            for place, first, same_answer in _repeats_in(part):
                if place[0] != first[0]:
                    leaks.add(place, first, same_answer)
                else:
                    (duplicates if same_answer else conflicts).add(place, first, same_answer)
        findings.add_many(map(self._leak, leaks.sorted()), leaks.count)
        findings.add_many(map(self._duplicate, duplicates.sorted()), duplicates.count)
        findings.add_many(map(self._conflict, conflicts.sorted()), conflicts.count)

    def _joined_parts(self) -> Iterator["array[int]"]:
        for number, part in enumerate(self._parts):
            if self._spilled:
                stream = self._spilled[number]
                stream.seek(0)
                whole = array("q", stream.read())
                whole.extend(part)
                part = whole
            self._parts[number] = array("q")
            yield part

    def _leak(self, found: "_Repeat") -> RowFinding:
        place, first, same_answer = found
        answer = "the same answer" if same_answer else "another answer"
        text = (
            f"the prompt of row {first[1]} of {self._files[first[0]].name} again, with "
            f"{answer}: a leak between files"
        )
        return self._finding(place, flaw("row", "leak", text, fix=_SPLIT))

    def _duplicate(self, found: "_Repeat") -> RowFinding:
        place, first, _ = found
        return self._finding(
            place, flaw("row", "duplicate", f"the same as row {first[1]}", "", "warn")
        )

    def _conflict(self, found: "_Repeat") -> RowFinding:
        place, first, _ = found
        return self._finding(
            place,
            flaw(
                "row", "conflict", f"the prompt of row {first[1]} with another answer", "", "warn"
            ),
        )

    def _finding(self, place: "_Place", problem: RowFinding) -> RowFinding:
        file, row, line = place
        return problem.at(self._files[file], row, line)


_SPLIT = "iisft data split keeps rows with the same prompt on one side"
_Place = tuple[int, int, int]  # index of the file, row, line
_Repeat = tuple[_Place, _Place, bool]


def _repeats_in(part: "array[int]") -> Iterator[_Repeat]:
    """(place, place of the first with this prompt, whether the answer is the same) of all but the
    first.
    """
    first_with_prompt: dict[int, int] = {}
    first_with_both: dict[tuple[int, int], int] = {}
    for start in range(0, len(part), _COLUMNS):
        prompt = part[start]
        first = first_with_prompt.setdefault(prompt, start)
        if first == start:
            continue
        answer = part[start + 1]
        same = answer == part[first + 1]
        if not same:
            earlier = first_with_both.setdefault((prompt, answer), start)
            if (
                earlier != start
                and part[earlier + 3] & 255 == part[start + 3] & 255 == part[first + 3] & 255
            ):
                first, same = earlier, True
        yield _place(part, start), _place(part, first), same


def _place(part: "array[int]", start: int) -> _Place:
    packed = part[start + 3]
    return packed & 255, part[start + 2], packed >> 8


class _Lowest:
    """Counts repeats and keeps those with the lowest places."""

    def __init__(self) -> None:
        self.count = 0
        self._heap: list[tuple[tuple[int, int], _Repeat]] = []

    def add(self, place: _Place, first: _Place, same_answer: bool) -> None:
        self.count += 1
        item = ((-place[0], -place[1]), (place, first, same_answer))
        if len(self._heap) < KEPT:
            heapq.heappush(self._heap, item)
        elif item > self._heap[0]:
            heapq.heapreplace(self._heap, item)

    def sorted(self) -> list[_Repeat]:
        return sorted(repeat for _, repeat in self._heap)
