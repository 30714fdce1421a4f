"""A server of recommendations: one model, a catalogue that can grow while it serves, and a page to look at both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import generate_latest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

from tigerrec import TigerrecError, __version__
from tigerrec.search.options import Scores
from tigerrec.serving.gathering import QueueFull, Request
from tigerrec.serving.guard import Guard
from tigerrec.serving.page_routes import add_page, described, neighbours
from tigerrec.serving.recommender import Recommendation
from tigerrec.serving.rules import Rules
from tigerrec.serving.shop import Shop
from tigerrec.storage.files import BusyError

MOST_BYTES = {"": 1 << 20, "/items": 1 << 26}


def _whole(value: Any) -> Any:
    """An id that JSON has as a number like 12.0 as the data set's reader takes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


Id = Annotated[str, BeforeValidator(_whole), Field(max_length=1_000)]
Ids = Annotated[list[Id], Field(max_length=100_000)]


class Wanted(BaseModel):
    """A request for recommendations."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    history: Annotated[list[Id], Field(max_length=10_000)] = Field(description="item ids, oldest first")
    k: Annotated[int, BeforeValidator(_no_truth)] = Field(default=10, ge=1, le=1_000, description="how many items")
    allow: Ids | None = Field(default=None, description="none but these items")
    deny: Ids = Field(default=[], description="none of these items")
    category: str | None = Field(default=None, max_length=1_000, description="none but items of this category")
    keep_seen: bool = Field(default=False, description="also items of the history")

    def request(self) -> Request:
        """The request as the ranking thread takes it."""
        rules = Rules.of(self.allow, self.deny, self.category)
        return Request(tuple(item_id.strip() for item_id in self.history), self.k, not self.keep_seen, rules)


class NewItem(BaseModel):
    """An item that training never saw."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    item_id: Id
    title: str | None = None
    brand: str | None = None
    categories: list[str] = []
    price: float | None = None
    text: str | None = None
    vector: list[float] | None = None
    generator_vector: list[float] | None = None


class Items(BaseModel):
    """New items."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[NewItem], Field(min_length=1, max_length=100_000)]


def shown(item: Recommendation) -> dict[str, Any]:
    """A recommended item as JSON has it."""
    return {"item_id": item.item_id, "title": item.title, "score": item.score, "semantic_id": item.semantic_id}


def make_app(
    folder: Path,
    device: str = "auto",
    token: str | None = None,
    most_waiting: int = 1024,
    scores: Scores | None = None,
) -> Guard:
    """The server of a model as an ASGI application. Raises TigerrecError if the model cannot be read."""
    shop = Shop(folder, device, most_waiting, scores)

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(shop.gatherer.stop)

    app = FastAPI(title="tigerrec", version=__version__, lifespan=living)
    _add_routes(app, shop)
    add_page(app, shop, Wanted)
    return Guard(app, MOST_BYTES, token, shop.observe)


def _add_routes(app: FastAPI, shop: Shop) -> None:
    """What programs ask."""

    @app.exception_handler(TigerrecError)
    async def refused(_: HttpRequest, error: TigerrecError) -> JSONResponse:
        status, headers = (503, {"Retry-After": "1"}) if isinstance(error, QueueFull | BusyError) else (400, None)
        return JSONResponse({"error": str(error)}, status, headers)

    @app.exception_handler(HTTPException)
    async def without_answer(_: HttpRequest, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": f"{error.detail}."}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return JSONResponse({"error": f"{place}: {first['msg']}."}, 422)

    @app.post("/recommend")
    async def recommend(wanted: Wanted) -> Any:
        """The best items to follow a history; of an unknown or empty one, what was bought most (`fallback`)."""
        found = await shop.answer(wanted.request())
        return {
            "items": [shown(item) for item in found.items],
            "fallback": bool(found.items) and found.items[0].fallback,
            "unknown": found.n_unknown,
            "unknown_in_rules": found.n_unknown_rules,
            "catalogue": found.version,
            "model": found.model,
        }

    @app.post("/items")
    async def add(new: Items) -> Any:
        """Add items that training never saw; they can be recommended when this answers."""
        return await shop.add([item.model_dump(exclude_none=True) for item in new.items])

    @app.get("/items/{item_id:path}")
    async def item(item_id: str) -> Any:
        """An item: its title, categories, Semantic ID, and its neighbours in the tree."""
        catalogue = shop.serving.recommender.catalogue
        number = catalogue.numbers.get(item_id)
        if number is None:
            return JSONResponse({"error": f"There is no item {item_id[:100]!r} in the catalogue."}, 404)
        return described(catalogue, number) | {"neighbours": neighbours(catalogue, number)}

    @app.get("/healthz")
    async def health() -> Any:
        """Whether the server serves, and what."""
        recommender = shop.serving.recommender
        served = {"model": recommender.fingerprint, "items": len(recommender.catalogue)}
        return {"status": "ok", "catalogue": shop.serving.version, "version": __version__} | served

    @app.get("/metrics")
    async def metrics() -> Any:
        """Measurements for Prometheus."""
        return PlainTextResponse(generate_latest(shop.registry).decode())
