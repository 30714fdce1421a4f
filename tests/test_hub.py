"""Models of the Hugging Face Hub, against a stand-in on this machine."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.hub_server import TOKEN, Hub, Model
from tests.test_recommender import HISTORY
from tests.test_serve import Client, ids, refused
from tests.tiny_run import build_run
from tigerrec import TigerrecError, tools
from tigerrec.serving.everybody import recommend_all
from tigerrec.serving.export import export, push
from tigerrec.serving.hub import HubError, model_folder
from tigerrec.serving.new_items import add_items
from tigerrec.serving.recommender import Recommender
from tigerrec.serving.server import make_app
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import write_json
from tigerrec.storage.fingerprints import content_digest
from tigerrec.storage.manifests import MANIFEST, DamagedError, read_manifest

NAME = "lab/tents"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs"))["train"]


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("exports") / "export")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH", "AGENT_HARNESSES_PATH"):
            monkeypatch.setattr(constants, name, str(tmp_path / name.lower()), raising=False)
        yield hub
        hub.shutdown()


def put(hub: Hub, folder: Path, name: str = NAME) -> Model:
    """A model with the files of a folder, as if it had been pushed."""
    hub.models[name] = Model()
    hub.models[name].commit({path.name: path.read_bytes() for path in folder.iterdir()})
    return hub.models[name]


def commits(hub: Hub) -> list[str]:
    return [path for method, path in hub.asked if method == "POST" and "/commit/" in path]


def test_what_was_pushed_recommends_the_same(run: Path, hub: Hub) -> None:
    assert push(run, NAME) == f"{hub.url}/{NAME}"
    assert len(commits(hub)) == 1
    assert not hub.models[NAME].private
    pushed = Recommender.from_pretrained(NAME, device="cpu")
    assert pushed.recommend(HISTORY) == Recommender.from_pretrained(run, device="cpu").recommend(HISTORY)
    folder = model_folder(NAME)
    assert folder.is_relative_to(Path("hf_hub_cache").resolve())
    assert (folder / "model.safetensors").is_symlink()
    hub.asked.clear()
    assert model_folder(Path(NAME)) == folder
    assert hub.asked == [("GET", f"/api/models/{NAME}/revision/main")]


def test_the_command_pushes_and_recommends(exported: Path, hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)

    def tigerrec(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tigerrec", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    pushed = tigerrec("push", str(exported), NAME, "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.splitlines()[-1] == f"{hub.url}/{NAME}"
    assert "data file" not in pushed.stderr
    assert hub.models[NAME].private
    asked = tigerrec("recommend", NAME, "--items", ",".join(HISTORY), "--k", "3")
    assert asked.stdout == Recommender.from_pretrained(exported, device="cpu").report(HISTORY, 3) + "\n", asked.stderr
    assert tools.arguments_of("push", ["m", "a/b"]).private is False


def test_only_what_the_manifest_names_is_pushed_and_downloaded(exported: Path, hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(exported, "mine")
    Path("mine/notes.md").write_text("of the user")
    push(Path("mine"), NAME)
    of_export = {*read_manifest(exported).files, MANIFEST}
    assert hub.models[NAME].files().keys() == of_export | {".gitattributes"}
    hub.models[NAME].commit({"weights.pkl": pickle.dumps([1]), "embedder.json": b"{}", "other.safetensors": b""})
    folder = model_folder(NAME)
    assert {path.name for path in folder.iterdir()} == of_export
    assert Recommender.from_pretrained(folder, device="cpu").recommend(HISTORY)


def test_a_file_that_could_hold_code_is_not_downloaded_even_if_the_manifest_names_it(
    exported: Path, hub: Hub, tmp_path: Path
) -> None:
    shutil.copytree(exported, "mine")
    manifest = read_json(Path("mine"), MANIFEST)
    manifest["files"]["weights.pkl"] = manifest["files"]["model.safetensors"]
    write_json(Path("mine") / MANIFEST, manifest | {"content": content_digest(manifest["files"])})
    shutil.copyfile("mine/model.safetensors", "mine/weights.pkl")
    put(hub, Path("mine"))
    with pytest.raises(HubError, match=r"names 'weights.pkl', and only \.json, \.safetensors, \.parquet, \.md are"):
        model_folder(NAME)
    assert {path.rpartition("/")[2] for _, path in hub.asked if "resolve" in path} == {MANIFEST}


def test_a_revision_can_be_named(exported: Path, hub: Hub) -> None:
    model = put(hub, exported)
    (first,) = model.commits
    model.commit({MANIFEST: b"{}"})
    assert model_folder(f"{NAME}@{first}").name == first
    with pytest.raises(HubError, match="lab/tents of the hub cannot be used: it holds no export"):
        model_folder(NAME)
    with pytest.raises(HubError, match="it has no such revision; give another after the @, or none"):
        model_folder(f"{NAME}@v2")


def test_a_local_path_wins(run: Path, exported: Path, hub: Hub) -> None:
    put(hub, exported)
    Path(NAME).mkdir(parents=True)
    with pytest.raises(TigerrecError, match="lab/tents holds no finished stage; give the folder"):
        Recommender.from_pretrained(NAME)
    for none in ("nowhere", "./lab/other", "../lab", "a/b/c", "lab/tents--old"):
        with pytest.raises(TigerrecError, match="does not exist; give the folder that `tigerrec train` printed"):
            Recommender.from_pretrained(none)
    assert not hub.asked


def test_what_was_downloaded_serves_without_a_network(exported: Path, hub: Hub) -> None:
    put(hub, exported)
    folder = model_folder(NAME)
    hub.broken = 503
    assert model_folder(NAME) == folder
    hub.shutdown()
    hub.server_close()
    assert model_folder(NAME) == folder


def test_other_commands_take_a_name_of_the_hub_too(exported: Path, hub: Hub) -> None:
    put(hub, exported)
    Path("orders.csv").write_text("user,item,time\nann,0000000003,1\n")
    recommend_all(Path(NAME), Path("out.csv"), histories=Path("orders.csv"), k=2, device="cpu")
    assert len(Path("out.csv").read_text().splitlines()) == 3
    with pytest.raises(TigerrecError, match=r"is an export, which holds no users; give their interactions"):
        recommend_all(Path(NAME), Path("out.csv"))
    Path("new.csv").write_text("item_id,title\nnew,New item\n")
    with pytest.raises(TigerrecError, match="does not say which embedder made its vectors"):
        add_items(Path(NAME), Path("new.csv"), Path("more"))


def test_a_model_of_the_hub_is_served_and_its_download_stays_as_it_is(exported: Path, hub: Hub) -> None:
    put(hub, exported)
    client = Client(make_app(Path(NAME), "cpu"))
    assert len(ids(client.recommend(history=["0000000003"], k=2))) == 2
    answer = client("POST", "/items", json={"items": [{"item_id": "new", "title": "New item"}]})
    assert f"tigerrec add {NAME} --items-file <table> --out <folder>" in refused(answer, 400)
    assert read_manifest(model_folder(NAME)) == read_manifest(exported)


@pytest.mark.parametrize(
    ("status", "token", "message"),
    [
        (
            None,
            TOKEN,
            "there is none of that name; check it, or, if it is private, log in with `hf auth login`, or set",
        ),
        (
            None,
            "",
            "it is not there, or closed to you; check the name, or log in with `hf auth login`, or set HF_TOKEN",
        ),
        (401, TOKEN, "it is not there, or closed to you; check the name, or log in"),
        (403, TOKEN, "it is closed to you; ask its owner for access, or log in"),
        (404, TOKEN, "there is none of that name; check it"),
        (503, TOKEN, r"refuses \(.*503.*\); try again later"),
    ],
)
def test_what_the_hub_refuses(
    exported: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int | None, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.broken = status
    begins = f"There is no folder {NAME}, and the model {NAME} of the hub cannot be downloaded: "
    with pytest.raises(HubError, match=f"^{begins}.*{message}") as refused:
        Recommender.from_pretrained(NAME)
    assert len(str(refused.value).splitlines()) == 1
    if status or not token:
        with pytest.raises(HubError, match=f"^The model cannot be pushed to {NAME}: .*{message}") as refused:
            push(exported, NAME)
        assert len(str(refused.value).splitlines()) == 1


def test_a_hub_that_cannot_be_reached(exported: Path, hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    message = rf"{hub.url} cannot be reached \(.*refused\); connect to the network"
    with pytest.raises(HubError, match=rf"{message}, or give a local folder\.$"):
        model_folder(NAME)
    with pytest.raises(HubError, match=rf"{message}\.$"):
        push(exported, NAME)


def test_a_cache_that_cannot_be_written(exported: Path, hub: Hub) -> None:
    put(hub, exported)
    Path("hf_hub_cache").write_text("a file")
    with pytest.raises(HubError, match=r"hf_hub_cache.*; free space in .*hf_hub_cache, or set HF_HOME to a folder to"):
        model_folder(NAME)


def test_a_damaged_file_is_refused_and_downloaded_again_once_the_cache_is_deleted(exported: Path, hub: Hub) -> None:
    whole = (exported / "model.safetensors").read_bytes()
    model = put(hub, exported)
    (files,) = model.commits.values()
    files["model.safetensors"] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(HubError, match=r"model\.safetensors is damaged \(expected sha256 .*\); delete .*lab--tents to"):
        Recommender.from_pretrained(NAME)
    files["model.safetensors"] = whole
    shutil.rmtree("hf_hub_cache/models--lab--tents")
    assert Recommender.from_pretrained(NAME, device="cpu").recommend(HISTORY)
    model.commits["f" * 40] = {name: content for name, content in files.items() if name != "items.parquet"}
    with pytest.raises(HubError, match=r"items\.parquet is missing; delete "):
        Recommender.from_pretrained(NAME)


@pytest.mark.parametrize(
    "files", [{"config.json": b"{}", "model.safetensors": b""}, {MANIFEST: b"[]", "model.safetensors": b""}]
)
def test_a_repository_without_an_export_is_refused_before_its_weights_are_downloaded(
    hub: Hub, files: dict[str, bytes]
) -> None:
    hub.models[NAME] = Model()
    hub.models[NAME].commit(files)
    with pytest.raises(HubError, match="it holds no export of tigerrec; put one there with `tigerrec push"):
        model_folder(NAME)
    assert not [path for _, path in hub.asked if path.endswith(".safetensors")]


@pytest.mark.parametrize(
    "name", ["tents", "lab/", "/tents", "a/b/c", "lab/te nts", "lab/..", "lab/a--b", "ü/b", "a/b.git"]
)
def test_a_wrong_name_is_refused_before_any_work(hub: Hub, name: str) -> None:
    with pytest.raises(HubError, match="is no name of a model on the Hugging Face Hub; write <owner>/<name>"):
        push(Path("nowhere"), name)
    assert not hub.asked


def test_only_whole_models_are_pushed(exported: Path, hub: Hub) -> None:
    shutil.copytree(exported, "mine")
    Path("mine/items.parquet").unlink()
    with pytest.raises(DamagedError, match=r"items\.parquet is missing"):
        push(Path("mine"), NAME)
    with pytest.raises(TigerrecError, match="does not exist; give the folder that `tigerrec train` printed"):
        push(Path("nowhere"), NAME)
    assert not hub.asked


def test_what_should_be_private_is_not_pushed_where_all_can_see_it(exported: Path, hub: Hub) -> None:
    put(hub, exported)
    with pytest.raises(HubError, match="lab/tents is there already, for all to see; make it private in its settings"):
        push(exported, NAME, private=True)
    assert not commits(hub)
    push(exported, NAME)
