"""One thread that ranks: requests that wait at the same time are searched together."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tigerrec import TigerrecError
from tigerrec.serving.recommender import Recommendation, Recommender
from tigerrec.serving.rules import Rules

GATHERED_SECONDS = 0.005
MOST_TOGETHER = 64


class QueueFull(TigerrecError):
    """More requests wait than may."""


@dataclass(frozen=True)
class Request:
    """What is asked: the ids of a history, oldest first, and how the list is to be."""

    history: tuple[str, ...]
    k: int = 10
    mask_seen: bool = True
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class Serving:
    """A recommender and the number of its catalogue, from 1."""

    recommender: Recommender
    version: int = 1


@dataclass(frozen=True)
class Answer:
    """A list, how many ids of the history and of the rules were unknown, and the number of the catalogue and the model
    it is of."""

    items: list[Recommendation]
    n_unknown: int
    n_unknown_rules: int
    version: int
    model: str


def answers(serving: Serving, requests: list[Request]) -> list[Answer]:
    """The answers to requests that differ in their histories alone."""
    catalogue, first = serving.recommender.catalogue, requests[0]
    known = [catalogue.indices(request.history) for request in requests]
    found = serving.recommender.lists(known, first.k, first.mask_seen, first.rules)
    of_rules = first.rules.n_unknown(catalogue.numbers)
    model = serving.recommender.fingerprint
    return [
        Answer(items, len(request.history) - len(indices), of_rules, serving.version, model)
        for request, indices, items in zip(requests, known, serving.recommender.named(found), strict=True)
    ]


class Gatherer:
    """Answers requests on a thread of its own, those that came within a few milliseconds by one search.

    Args:
        current: gives what is served; asked once for each search, so that none sees two catalogues.
        most_waiting: how many requests may wait.
    """

    def __init__(self, current: Callable[[], Serving], most_waiting: int) -> None:
        self.current = current
        self.waiting: queue.Queue[tuple[Any, Future[Any]] | None] = queue.Queue(most_waiting)
        self.thread = threading.Thread(target=self._run, name="ranking", daemon=True)
        self.thread.start()

    async def submit(self, job: Request | Callable[[Serving], Any]) -> Any:
        """The answer to a request, or what another job of the ranking thread gives. Raises QueueFull if too many wait,
        else what the job raises."""
        promised: Future[Any] = Future()
        try:
            self.waiting.put_nowait((job, promised))
        except queue.Full:
            raise QueueFull("Too many requests wait; try again in a second.") from None
        return await asyncio.wrap_future(promised)

    def stop(self) -> None:
        """Answer what waits, then end the thread."""
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        while self._answer_some(self._gathered()):
            pass

    def _gathered(self) -> list[tuple[Any, Future[Any]] | None]:
        """What waits, at least one; where several do, those too that come in the next milliseconds."""
        found = [self.waiting.get()]
        end = time.monotonic() + GATHERED_SECONDS
        while len(found) < MOST_TOGETHER and found[-1] is not None:
            left = end - time.monotonic() if len(found) > 1 else 0.0
            try:
                found.append(self.waiting.get(timeout=left) if left > 0 else self.waiting.get_nowait())
            except queue.Empty:
                break
        return found

    def _answer_some(self, gathered: list[tuple[Any, Future[Any]] | None]) -> bool:
        """Answer what was gathered; whether there may be more."""
        serving = self.current()
        alike: dict[Any, list[tuple[Any, Future[Any]]]] = {}
        for entry in gathered:
            if entry is None or entry[1].cancelled():  # a client that went away
                continue
            job = entry[0]
            key = (job.k, job.mask_seen, job.rules) if isinstance(job, Request) else id(entry)
            alike.setdefault(key, []).append(entry)
        for entries in alike.values():
            self._answer(serving, entries)
        return gathered[-1] is not None

    def _answer(self, serving: Serving, entries: list[tuple[Any, Future[Any]]]) -> None:
        try:
            jobs = [job for job, _ in entries]
            found = answers(serving, jobs) if isinstance(jobs[0], Request) else [jobs[0](serving)]
        except Exception as error:  # of any kind: the others go on
            for _, promised in entries:
                if promised.set_running_or_notify_cancel():
                    promised.set_exception(error)
            return
        for (_, promised), answer in zip(entries, found, strict=True):
            if promised.set_running_or_notify_cancel():
                promised.set_result(answer)
