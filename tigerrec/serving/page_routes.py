"""The page of a server and what it asks: items by words and category, neighbours, and how a list came about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import FileResponse

from tigerrec.serving.catalogue import Catalogue
from tigerrec.serving.explain import branches
from tigerrec.serving.gathering import Serving
from tigerrec.serving.rules import in_category
from tigerrec.serving.shop import Shop

PAGE = Path(__file__).parent / "page"
HEADERS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' data:"}
NEIGHBOURS = 12


def described(catalogue: Catalogue, number: int) -> dict[str, Any]:
    """An item as JSON has it."""
    return {
        "item_id": catalogue.item_ids[number],
        "title": catalogue.titles[number],
        "categories": catalogue.categories[number].as_py(),
        "semantic_id": catalogue.codes[number].tolist(),
    }


def neighbours(catalogue: Catalogue, number: int) -> list[dict[str, Any]]:
    """The items nearest in the tree, those that share the most codes first."""
    same = (catalogue.codes == catalogue.codes[number]).cumprod(axis=1).sum(axis=1)
    nearest = [int(item) for item in (-same).argsort(kind="stable")[: NEIGHBOURS + 1] if item != number]
    return [described(catalogue, item) | {"shared_codes": int(same[item])} for item in nearest if same[item]]


def add_page(app: FastAPI, shop: Shop, wanted_model: type[Any]) -> None:
    """Add the page and what it asks; `wanted_model` describes a request for recommendations."""

    async def explain(wanted: Any) -> Any:
        request = wanted.request()

        def job(serving: Serving) -> Any:
            return branches(serving.recommender, request.history, request.k, request.mask_seen, request.rules)

        levels = await shop.gatherer.submit(job)
        return {"levels": [[vars(branch) for branch in level] for level in levels]}

    explain.__annotations__["wanted"] = wanted_model
    app.post("/explain", include_in_schema=False)(explain)

    @app.get("/search", include_in_schema=False)
    async def search(text: str = "", category: str = "", limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Any:
        catalogue = shop.serving.recommender.catalogue
        return await asyncio.to_thread(found_items, catalogue, text, category, limit)

    @app.get("/categories", include_in_schema=False)
    async def categories() -> Any:
        return await asyncio.to_thread(most_frequent_categories, shop.serving.recommender.catalogue)

    for path, name in (("/", "index.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        app.get(path, include_in_schema=False)(_file(PAGE / name))


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def give() -> FileResponse:
        return FileResponse(path, headers=HEADERS)

    return give


def found_items(catalogue: Catalogue, text: str, category: str, limit: int) -> list[dict[str, Any]]:
    """Items whose id or title holds some words, of a category if one is given."""
    words = text.lower().split()
    allowed = in_category(category, catalogue.categories) if category else None
    found: list[int] = []
    for number, (item_id, title) in enumerate(zip(catalogue.item_ids, catalogue.titles, strict=True)):
        if allowed is not None and not allowed[number]:
            continue
        whole = f"{item_id} {title or ''}".lower()
        if all(word in whole for word in words):
            found.append(number)
            if len(found) == limit:
                break
    return [described(catalogue, number) for number in found]


def most_frequent_categories(catalogue: Catalogue, limit: int = 200) -> list[dict[str, Any]]:
    """The names of categories with the most items, and how many have each."""
    import pyarrow.compute as pc

    counts = pc.value_counts(pc.list_flatten(catalogue.categories.combine_chunks())).to_pylist()
    ordered = sorted((count for count in counts if count["values"]), key=lambda count: -count["counts"])
    return [{"category": count["values"], "items": count["counts"]} for count in ordered[:limit]]
