"""What a server serves: a recommender that is replaced while requests go on, kept answers, and counts of both."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tigerrec.config import expanded
from tigerrec.search.options import Scores
from tigerrec.serving.gathering import Answer, Gatherer, Request, Serving
from tigerrec.serving.hub import model_folder
from tigerrec.serving.new_items import NewItemsError, add_items
from tigerrec.serving.recommender import EXPORT, Recommender
from tigerrec.storage.stages import open_stage

logger = logging.getLogger(__name__)

KEPT_ANSWERS = 10_000
MOST_KEPT_IDS = 200  # of a request whose answer is kept
METHODS = ("GET", "HEAD", "POST")


class Shop:
    """What a server serves, and how many answered what.

    Args:
        model: a train stage or an export, also as `owner/name` on the Hugging Face Hub; an export that is a folder of
            its own takes new items.
        most_waiting: how many requests may wait for the ranking thread.
        scores: as in `Recommender.from_pretrained`.
    """

    def __init__(self, model: Path, device: str, most_waiting: int, scores: Scores | None = None) -> None:
        self.folder, self.device, self.scores = model_folder(model), device, scores
        self.takes_no_items = None
        if self.folder != expanded(model):
            self.takes_no_items = (
                f"{model} of the hub takes no new items; serve a folder that "
                f"`tigerrec add {model} --items-file <table> --out <folder>` wrote."
            )
        elif open_stage(self.folder, "train", EXPORT).stage != EXPORT:
            self.takes_no_items = "A train folder takes no new items; serve an export of it: `tigerrec export`."
        self.serving = Serving(self._read())
        self.gatherer = Gatherer(lambda: self.serving, most_waiting)
        self.adding = asyncio.Lock()
        self.answers: OrderedDict[tuple[Request, int], Answer] = OrderedDict()
        self.registry = CollectorRegistry()
        named = ("method", "path", "status")
        self.requests = Counter("tigerrec_requests", "Requests answered.", named, registry=self.registry)
        self.seconds = Histogram("tigerrec_request_seconds", "Seconds of a request.", ("path",), registry=self.registry)
        self.hits = Counter("tigerrec_kept_answers", "Answers that were kept from before.", registry=self.registry)
        self.fallbacks = Counter("tigerrec_fallbacks", "Lists of what was bought most.", registry=self.registry)
        gauges = {
            "tigerrec_items": ("Items of the catalogue.", lambda: len(self.serving.recommender.catalogue)),
            "tigerrec_catalogue_version": ("Number of the catalogue.", lambda: self.serving.version),
            "tigerrec_waiting": ("Requests that wait.", self.gatherer.waiting.qsize),
        }
        for name, (about, value) in gauges.items():
            Gauge(name, about, registry=self.registry).set_function(value)

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(method if method in METHODS else "other", path, status).inc()
        self.seconds.labels(path).observe(seconds)

    async def answer(self, request: Request) -> Answer:
        """The answer to a request, kept from before or ranked now. Raises QueueFull if too many wait, RuleError if the
        rules leave no item."""
        key = request, self.serving.version
        if key in self.answers:
            self.answers.move_to_end(key)
            self.hits.inc()
            return self.answers[key]
        found: Answer = await self.gatherer.submit(request)
        n_ids = len(request.history) + len(request.rules.allow or ()) + len(request.rules.deny)
        if n_ids <= MOST_KEPT_IDS:
            self.answers[request, found.version] = found
        while len(self.answers) > KEPT_ANSWERS:
            self.answers.popitem(last=False)
        if found.items and found.items[0].fallback:
            self.fallbacks.inc()
        return found

    async def add(self, items: list[dict[str, Any]]) -> dict[str, int]:
        """Add items to the export and serve it; returns how many items there are, and the number of the catalogue. The
        older one serves until the newer one stands. Raises TigerrecError if they cannot be added."""
        if self.takes_no_items:
            raise NewItemsError(self.takes_no_items)
        async with self.adding:
            recommender = await asyncio.to_thread(self._grown, items)
            self.serving = Serving(recommender, self.serving.version + 1)
            self.answers.clear()
            logger.info("serving catalogue %d of %d items", self.serving.version, len(recommender.catalogue))
            return {"items": len(recommender.catalogue), "catalogue": self.serving.version}

    def _grown(self, items: list[dict[str, Any]]) -> Recommender:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "items.jsonl"
            table.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
            try:
                add_items(self.folder, table, self.folder)
            except NewItemsError as error:
                raise NewItemsError(str(error).replace(str(table), "the request")) from None
        return self._read()

    def _read(self) -> Recommender:
        return Recommender.from_pretrained(self.folder, self.device, self.scores)
