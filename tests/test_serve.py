"""The server: what it answers, alone and under load, and what it survives."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests import tiny_shop
from tigerrec import TigerrecError, cli, tools
from tigerrec.serving import guard
from tigerrec.serving.export import export
from tigerrec.serving.recommender import Recommender
from tigerrec.serving.rules import Rules
from tigerrec.serving.serve import serve
from tigerrec.serving.server import make_app

JSON = {"Content-Type": "application/json"}
ITEMS = [f"i{number:02d}" for number in range(tiny_shop.N_ITEMS)]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    trained = tiny_shop.run(
        tiny_shop.write_orders(folder), folder / "runs", "tokenizer.codebook_size=16", until="train"
    )
    return export(trained, folder / "model")


@pytest.fixture
def model(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture(scope="module")
def recommender(original) -> Recommender:
    return Recommender.from_pretrained(original, device="cpu")


class Client:
    """Requests to an application in this process, each run to its end."""

    def __init__(self, app) -> None:
        self.app = app

    def __call__(self, method: str, path: str, **options) -> httpx.Response:
        return self.all([(method, path, options)])[0]

    def all(self, requests: list[tuple[str, str, dict]]) -> list[httpx.Response]:
        """The answers to requests that are made at once."""

        async def ask() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
                return await asyncio.gather(
                    *(client.request(method, path, **options) for method, path, options in requests)
                )

        return asyncio.run(ask())

    def recommend(self, **wanted) -> httpx.Response:
        return self("POST", "/recommend", json=wanted)


@pytest.fixture
def client(model) -> Client:
    return Client(make_app(model, "cpu"))


@contextmanager
def running(model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process and its address."""
    command = [sys.executable, "-m", "tigerrec", "serve", str(model), "--port", "0", "--device", "cpu", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    sentence = answer.json()["error"]
    assert "Traceback" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_it_answers_as_the_recommender_does(client, recommender):
    for history in (["i03"], ["i01", "i05", "i09"], ITEMS[:12]):
        expected = recommender.recommend(history, 5)
        answer = client.recommend(history=history, k=5).json()
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected]
        assert [item["score"] for item in answer["items"]] == pytest.approx([item.score for item in expected], abs=1e-4)
        assert [tuple(item["semantic_id"]) for item in answer["items"]] == [item.semantic_id for item in expected]
        assert (answer["fallback"], answer["unknown"], answer["catalogue"]) == (False, 0, 1)
        assert answer["model"] == recommender.fingerprint


def test_rules_of_a_request(client, recommender):
    allow, deny = ITEMS[:9], ITEMS[2:4]
    found = ids(client.recommend(history=["i20"], k=20, allow=allow, deny=deny))
    assert sorted(found) == sorted(set(allow) - set(deny))
    expected = recommender.recommend(["i20"], 20, rules=Rules.of(allow, deny))
    assert found == [item.item_id for item in expected]
    assert "i05" in ids(client.recommend(history=["i05"], k=30, keep_seen=True))
    assert "i05" not in ids(client.recommend(history=["i05"], k=30))


def test_unknown_and_empty_histories_get_what_was_bought_most(client):
    for history, unknown in (([], 0), (["gone", "lost"], 2)):
        answer = client.recommend(history=history, k=3).json()
        assert (answer["fallback"], answer["unknown"], len(answer["items"])) == (True, unknown, 3)
    mixed = client.recommend(history=["gone", " i03 "], k=3).json()
    assert (mixed["fallback"], mixed["unknown"]) == (False, 1)


def test_ids_that_are_whole_numbers_are_taken_as_the_data_sets_reader_takes_them(tmp_path):
    orders = tiny_shop.write_orders(tmp_path)
    head, *rows = orders.read_text().splitlines()
    orders.write_text("\n".join([head, *(row.replace(",i0", ",").replace(",i", ",") for row in rows)]) + "\n")
    trained = tiny_shop.run(orders, tmp_path / "runs", "tokenizer.codebook_size=16", until="train")
    client = Client(make_app(export(trained, tmp_path / "model"), "cpu"))
    expected = client.recommend(history=["8"], k=20).json()
    assert client.recommend(history=[8.0], k=20).json() == client.recommend(history=[8], k=20).json() == expected
    assert not expected["fallback"]
    for deny in ([3], [3.0], ["3"]):
        assert "3" not in ids(client.recommend(history=["8"], k=30, deny=deny))
    assert client("POST", "/items", json={"items": [{"item_id": 99.0, "title": "x"}]}).status_code == 200
    assert client("GET", "/items/99").status_code == 200


def test_unknown_ids_of_rules_are_counted(client):
    answer = client.recommend(history=["i03", "gone"], allow=["i01", "lost"], deny=["i02", "left", "away"]).json()
    assert (answer["unknown"], answer["unknown_in_rules"]) == (1, 3)


def test_media_types_have_no_letter_case(client):
    content = json.dumps({"history": ["i03"]})
    answer = client("POST", "/recommend", content=content, headers={"Content-Type": "Application/JSON ; charset=utf-8"})
    assert answer.status_code == 200


def test_new_items_that_cannot_be_read_name_no_file_of_the_server(client):
    told = refused(client("POST", "/items", json={"items": [{"item_id": "", "title": "x"}]}), 400)
    assert told.startswith("Row 1 of the request cannot be read")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "body: "),
        (b"{", "1: "),
        (b"[1]", "body: "),
        (b"\xff\xfe", ""),
        (b'{"history": ["\xff"]}', ""),
        (b"[" * 200_000, ""),
        (b'{"history": [], "k": ' + b"9" * 5_000 + b"}", ""),
        (b'{"k": 5}', "history: "),
        (b'{"history": "i01"}', "history: "),
        (b'{"history": [["i01"]]}', "history.0: "),
        (b'{"history": [], "k": 0}', "k: "),
        (b'{"history": [], "k": true}', "k: "),
        (b'{"history": [], "k": 1e9}', "k: "),
        (b'{"history": [], "K": 5}', "K: "),
        (b'{"history": [], "allow": {"a": 1}}', "allow: "),
        (b'{"history": [' + b'"a",' * 10_001 + b'"a"]}', "history: "),
    ],
)
def test_malformed_bodies_are_one_sentence(client, content, place):
    answer = client("POST", "/recommend", content=content, headers=JSON)
    status = answer.status_code
    assert status in (400, 422)
    assert refused(answer, status).startswith(place)


def test_rules_that_leave_nothing_are_one_sentence_and_spoil_no_other(client):
    rules = [{}, {"allow": []}, {"category": "Nothing"}, {"deny": ITEMS}, {"allow": [""]}, {}]
    wanted = [{"history": ["i01"], **each} for each in rules]
    answers = client.all([("POST", "/recommend", {"json": each}) for each in wanted])
    assert [answer.status_code for answer in answers] == [200, 400, 400, 400, 400, 200]
    assert "leave no item" in refused(answers[1], 400)
    assert "no item of the model has any" in refused(answers[2], 400)


def test_bodies_that_are_too_large_are_refused(client):
    large = b'{"history": ["' + b"a" * (2 << 20) + b'"]}'

    async def in_pieces():
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    assert refused(client("POST", "/recommend", content=large, headers=JSON), 413)
    assert refused(client("POST", "/recommend", content=in_pieces(), headers=JSON), 413)
    assert ids(client.recommend(history=["i01"]))


def test_a_body_that_comes_too_slowly_is_given_up_and_others_are_answered(client, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)

    async def slow():
        yield b'{"history": '
        await asyncio.sleep(3)
        yield b"[]}"

    started = time.monotonic()
    answers = client.all(
        [
            ("POST", "/recommend", {"content": slow(), "headers": JSON}),
            ("POST", "/recommend", {"json": {"history": ["i01"]}}),
        ]
    )
    assert refused(answers[0], 408)
    assert ids(answers[1])
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:9"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_no_page_that_a_browser_shows_can_use_a_server_without_a_token(client, headers, status):
    answer = client("POST", "/recommend", content=b'{"history": []}', headers=JSON | headers)
    assert answer.status_code == status
    if status != 200:
        assert refused(client("POST", "/items", content=b"{}", headers=JSON | headers), status)


def test_odd_methods_are_counted_as_one(client):
    for number in range(5):
        client(f"FOO{number}", "/recommend")
    assert "FOO" not in client("GET", "/metrics").text


def test_answers_to_long_requests_are_not_kept(client):
    for _ in range(2):
        assert client.recommend(history=["i01"], deny=[f"x{number}" for number in range(300)]).status_code == 200
    assert "tigerrec_kept_answers_total 0.0" in client("GET", "/metrics").text


def test_the_token_is_asked_for(model):
    client = Client(make_app(model, "cpu", token="secret"))
    assert refused(client.recommend(history=["i01"]), 401)
    for given in ("Bearer wrong", "secret", "Bearer secret2", "Bearer "):
        assert refused(client("GET", "/metrics", headers={"Authorization": given}), 401)
    assert client("GET", "/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client("GET", "/healthz").status_code == 200
    assert client("GET", "/").status_code == 200


def test_a_thousand_requests_at_once_are_answered_each_with_its_own(client, recommender):
    rng = np.random.default_rng(0)
    histories = [rng.choice(ITEMS, rng.integers(1, 8), replace=False).tolist() for _ in range(1_000)]
    answers = client.all([("POST", "/recommend", {"json": {"history": each, "k": 3}}) for each in histories])
    expected = recommender.recommend_batch(histories, 3)
    for answer, one in zip(answers, expected, strict=True):
        assert ids(answer) == [item.item_id for item in one]
    searches = client("GET", "/metrics").text
    assert 'tigerrec_requests_total{method="POST",path="/recommend",status="200"} 1000.0' in searches


def test_requests_that_come_together_are_searched_together(model, monkeypatch):
    client, sizes, lists = Client(make_app(model, "cpu")), [], Recommender.lists

    def counted(self, known, *rest):
        sizes.append(len(known))
        time.sleep(0.05)
        return lists(self, known, *rest)

    monkeypatch.setattr(Recommender, "lists", counted)
    wanted = [
        ("POST", "/recommend", {"json": {"history": [item], "k": 3 + number % 2}}) for number, item in enumerate(ITEMS)
    ]
    assert all(answer.status_code == 200 for answer in client.all(wanted))
    assert sum(sizes) == len(ITEMS)
    assert len(sizes) <= 10


def test_a_full_queue_says_when_to_come_again(model, monkeypatch):
    client, lists, go_on = Client(make_app(model, "cpu", most_waiting=2)), Recommender.lists, threading.Event()

    def blocked(self, known, *rest):
        go_on.wait(20)
        return lists(self, known, *rest)

    monkeypatch.setattr(Recommender, "lists", blocked)
    threading.Timer(1.0, go_on.set).start()
    answers = client.all([("POST", "/recommend", {"json": {"history": [item]}}) for item in ITEMS])
    full = [answer for answer in answers if answer.status_code == 503]
    assert 1 <= len(answers) - len(full) <= 6
    assert all(answer.status_code in (200, 503) for answer in answers)
    for answer in full:
        assert answer.headers["Retry-After"] == "1"
        assert refused(answer, 503)
    assert ids(client.recommend(history=["i01"]))


def test_answers_are_kept_until_the_catalogue_changes(client):
    def hits() -> float:
        lines = client("GET", "/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("tigerrec_kept_answers_total"))

    wanted = {"history": ["i01", "i02"], "k": 4}
    first = client.recommend(**wanted).json()
    assert client.recommend(**wanted).json() == first
    assert hits() == 1
    assert client.recommend(**wanted, deny=["i03"]).json() != first or hits() == 1
    added = client("POST", "/items", json={"items": [{"item_id": "new", "title": "New tent"}]})
    assert added.json() == {"items": 31, "catalogue": 2}
    assert client.recommend(**wanted).json()["catalogue"] == 2
    assert hits() == 1


def test_added_items_are_recommended_and_stay(client, model):
    assert client("GET", "/items/new").status_code == 404
    new = {"item_id": "new", "title": "New tent", "categories": ["Tents"], "price": 12.5}
    assert client("POST", "/items", json={"items": [new]}).status_code == 200
    item = client("GET", "/items/new").json()
    assert (item["title"], item["categories"]) == ("New tent", ["Tents"])
    assert ids(client.recommend(history=["i01"], allow=["new"])) == ["new"]
    assert ids(client.recommend(history=["i01"], category="Tents")) == ["new"]
    assert Recommender.from_pretrained(model).catalogue.numbers["new"] == 30
    assert "in the catalogue already" in refused(client("POST", "/items", json={"items": [new]}), 400)
    assert refused(client("POST", "/items", json={"items": []}), 422).startswith("items: ")
    assert refused(client("POST", "/items", json={"items": [{"title": "x"}]}), 422).startswith("items.0.item_id: ")
    assert client("GET", "/healthz").json()["catalogue"] == 2


def test_a_train_folder_takes_no_new_items(original):
    trained = next((original.parent / "runs").rglob("t5-packed-seed0"))
    client = Client(make_app(trained, "cpu"))
    assert "serve an export of it" in refused(
        client("POST", "/items", json={"items": [{"item_id": "x", "title": "y"}]}), 400
    )
    assert ids(client.recommend(history=["i01"]))


def test_no_request_fails_or_sees_half_a_catalogue_while_it_is_replaced(model):
    with running(model) as (_, address), httpx.Client(base_url=address, timeout=60) as client:
        done, seen, models = threading.Event(), [], set()

        def ask(number: int) -> None:
            while not done.is_set():
                answer = client.post("/recommend", json={"history": [ITEMS[number]], "k": 40, "keep_seen": True})
                told = answer.json()
                seen.append((answer.status_code, told.get("catalogue"), len(told.get("items", []))))
                models.add((told.get("catalogue"), told.get("model")))

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number) for number in range(4)]
            for number in range(3):
                new = [{"item_id": f"new{number}-{each}", "title": f"Item {each}"} for each in range(2)]
                assert client.post("/items", json={"items": new}).status_code == 200
            done.set()
            for each in asked:
                each.result()
        assert {status for status, _, _ in seen} == {200}
        assert {version for _, version, _ in seen} == {1, 2, 3, 4}
        assert all(count == 30 + 2 * (version - 1) for _, version, count in seen)
        assert len(models) == len({model for _, model in models}) == 4


def test_killed_and_started_again_it_serves_what_it_served(model):
    with running(model) as (process, address):
        client = httpx.Client(base_url=address, timeout=60)
        assert client.post("/items", json={"items": [{"item_id": "new", "title": "New tent"}]}).status_code == 200
        before = client.post("/recommend", json={"history": ["i01"], "k": 31}).json()["items"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    with running(model) as (_, address):
        after = httpx.post(f"{address}/recommend", json={"history": ["i01"], "k": 31}, timeout=60).json()["items"]
    assert [item["item_id"] for item in after] == [item["item_id"] for item in before]
    assert "new" in [item["item_id"] for item in after]


def test_a_client_that_sends_slowly_or_goes_away_hinders_nobody(model):
    with running(model) as (_, address):
        host, port = address.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(20)]
        for number, connection in enumerate(slow):
            connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"POST /reco")
        for connection in slow[:5]:
            connection.close()
        body = b'{"history": ["i01"]}'
        gone = socket.create_connection((host, int(port)))
        gone.sendall(
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        gone.close()
        for item in ITEMS[:5]:
            assert ids(httpx.post(f"{address}/recommend", json={"history": [item]}, timeout=10))


def test_sigterm_lets_requests_end(model):
    with running(model) as (process, address):
        with ThreadPoolExecutor(20) as pool:
            asked = [
                pool.submit(
                    httpx.post, f"{address}/recommend", json={"history": ITEMS[: 1 + number], "k": 30}, timeout=30
                )
                for number in range(20)
            ]
            while not any(each.done() for each in asked):
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            ends = [each.exception() or each.result().status_code for each in asked]
        assert process.wait(30) in (0, -signal.SIGTERM)
    answered = [end for end in ends if end == 200]
    assert answered
    assert all(
        end == 200 or isinstance(end, httpx.ConnectError | httpx.RemoteProtocolError | httpx.ReadError) for end in ends
    )


def test_what_it_measures_and_describes(client):
    client.recommend(history=["i01"])
    client("GET", "/nowhere")
    metrics = client("GET", "/metrics").text
    for line in (
        'tigerrec_requests_total{method="POST",path="/recommend",status="200"} 1.0',
        'tigerrec_requests_total{method="GET",path="other",status="404"} 1.0',
        "tigerrec_items 30.0",
        "tigerrec_catalogue_version 1.0",
        "tigerrec_waiting 0.0",
    ):
        assert line in metrics
    described = client("GET", "/openapi.json").json()
    assert set(described["paths"]) == {"/recommend", "/items", "/items/{item_id}", "/healthz", "/metrics"}
    assert client("GET", "/docs").status_code == 200


def test_an_item_has_its_neighbours_in_the_tree(client, recommender):
    codes = recommender.catalogue.codes
    item = client("GET", "/items/i07").json()
    number = recommender.catalogue.numbers["i07"]
    assert item["semantic_id"] == codes[number].tolist()
    for each in item["neighbours"]:
        n = each["shared_codes"]
        assert each["semantic_id"][:n] == item["semantic_id"][:n]
        assert n == len(item["semantic_id"]) or each["semantic_id"][n] != item["semantic_id"][n]
    shared = [each["shared_codes"] for each in item["neighbours"]]
    assert shared == sorted(shared, reverse=True)
    assert min(shared, default=1) >= 1
    assert "i07" not in [each["item_id"] for each in item["neighbours"]]


def test_a_core_is_left_for_requests(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    for given, expected in ((None, "7"), ("3", "3")):
        with monkeypatch.context() as environment:
            environment.delenv("OMP_NUM_THREADS", raising=False)
            if given:
                environment.setenv("OMP_NUM_THREADS", given)
            tools.leave_a_core()
            assert os.environ["OMP_NUM_THREADS"] == expected
    code = "import sys, tigerrec.cli; print('torch' in sys.modules)"  # which reads it where it is imported
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_scores_that_are_asked_for_rank(tmp_path):
    trained = tiny_shop.run(tiny_shop.write_orders(tmp_path), tmp_path / "runs", "generator=t5_tree", until="train")
    lists = {}
    for scores in ("codes", "items"):
        answer = Client(make_app(trained, "cpu", scores=scores)).recommend(history=["i01"], k=5).json()
        expected = Recommender.from_pretrained(trained, "cpu", scores).recommend(["i01"], 5)
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected]
        lists[scores] = [item["score"] for item in answer["items"]]
    assert lists["codes"] != lists["items"]


def test_where_it_listens(model, monkeypatch):
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(TigerrecError, match="give it a token by `--token"):
            serve(model, host)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TigerrecError, match=f"Cannot listen at 127.0.0.1:{port}; choose another port"):
            serve(model, port=port, device="cpu")
    for port in (-1, 70_000):
        with pytest.raises(TigerrecError, match=f"--port {port} must be from 0 to 65535"):
            serve(model, port=port)
    for most_waiting in (0, -5):
        with pytest.raises(TigerrecError, match=f"--waiting {most_waiting} must be 1 or more"):
            serve(model, most_waiting=most_waiting)
    for token in ("", "  "):
        with pytest.raises(TigerrecError, match="The token is empty"):
            serve(model, "0.0.0.0", token=token)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "tigerrec.serving.server")
    with pytest.raises(
        SystemExit, match=r'Error: Serving needs the package fastapi; run `pip install "tigerrec\[serve\]"`'
    ):
        cli.main(["serve", str(model)])


def test_the_levels_of_an_explanation_hold_the_paths_of_the_list(client):
    wanted = {"history": ["i01", "i02"], "k": 5}
    levels = client("POST", "/explain", json=wanted).json()["levels"]
    items = client.recommend(**wanted).json()["items"]
    for depth, level in enumerate(levels, start=1):
        kept = [tuple(branch["codes"]) for branch in level]
        assert len(set(kept)) == len(kept) <= 20
        assert {tuple(item["semantic_id"][:depth]) for item in items} <= set(kept)
        probabilities = [branch["probability"] for branch in level]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-5
    last = {tuple(branch["codes"]): branch["probability"] for branch in levels[-1]}
    for item in items:
        assert last[tuple(item["semantic_id"])] == pytest.approx(np.exp(item["score"]), rel=1e-3)
    assert client("POST", "/explain", json={"history": ["gone"]}).json() == {"levels": []}


@pytest.mark.parametrize("n_allowed", [1, 2, 7])
def test_an_explanation_under_rules_shows_what_they_leave(client, n_allowed):
    for start in range(0, 28, 3):
        wanted = {"history": ["i01", "i02"], "k": 5, "allow": ITEMS[start : start + n_allowed]}
        levels = client("POST", "/explain", json=wanted).json()["levels"]
        answer = client.recommend(**wanted)
        paths = [tuple(item["semantic_id"]) for item in answer.json()["items"]]
        for depth, level in enumerate(levels, start=1):
            kept = {tuple(branch["codes"]) for branch in level}
            assert kept >= {path[:depth] for path in paths}
            assert len(kept) <= n_allowed
            assert all(1 <= branch["n_items"] <= n_allowed for branch in level)


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_in_a_browser(model, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    expect = sync_api.expect
    new = {"item_id": "<b>new</b>", "title": "<img src=x onerror=alert(1)> tent", "categories": ["Tents & <i>more</i>"]}
    with running(model) as (_, address), sync_api.sync_playwright() as playwright:
        assert httpx.post(f"{address}/items", json={"items": [new]}, timeout=60).status_code == 200
        chromium = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": width, "height": 900})
        told, foreign = [], []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: foreign.append(request.url))
        page.goto(address)
        page.wait_for_selector("#list li button")
        assert "31 items" in page.inner_text("#served")
        assert "bought most" in page.inner_text("#note")
        page.fill("#words", "i0")
        expect(page.locator("#found li")).to_have_count(10)
        chosen = page.inner_text("#found li:nth-child(4) .id")
        page.click("#found li:nth-child(4) button")
        page.wait_for_selector("#tree .branch")
        assert page.locator("#history li").count() == 1
        assert page.inner_text("#history li .id") == chosen
        page.click("#list li:nth-child(2) .path")
        way = page.inner_text("#list li:nth-child(2) .id").split(" · ")[1].split("-")
        on = page.locator(".branch.on").evaluate_all("chips => chips.map(chip => chip.dataset.codes)")
        assert on == ["-".join(way[:depth]) for depth in range(1, len(way) + 1)]
        page.click("#list li:nth-child(1) button:first-child")
        expect(page.locator("#history li")).to_have_count(2)
        page.select_option("#category", "Tents & <i>more</i>")
        page.check("#only")
        expect(page.locator("#list li")).to_have_count(1)
        assert "<img src=x onerror=alert(1)> tent" in page.inner_text("#list")
        page.click("#clear")
        expect(page.locator("#history li")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert told == []
        assert all(url.startswith((address, "data:")) for url in foreign)
        chromium.close()


def test_scores_and_titles_are_json(client):
    text = client.recommend(history=["i01"]).text
    assert json.loads(text) == json.loads(json.dumps(json.loads(text), allow_nan=False))
