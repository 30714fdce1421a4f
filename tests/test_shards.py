"""Long work in pieces: what a stopped run left is used where it is whole and of exactly this work."""

from pathlib import Path

import numpy as np
import pytest

from tigerrec.storage import shards
from tigerrec.storage.files import ArtifactError

NAMES = ["a", "b", "c"]


def compute(number: int) -> dict[str, np.ndarray]:
    return {"items": np.arange(number, number + 4, dtype=np.int32), "scores": np.full((2, 2), number, np.float32)}


def forbidden(number: int) -> dict[str, np.ndarray]:
    raise AssertionError(f"piece {number} is computed again")


def arrays(pieces: list[shards.Arrays]) -> list[dict[str, list]]:
    return [{name: array.tolist() for name, array in piece.items()} for piece in pieces]


def test_pieces_come_in_order_and_are_computed_once(tmp_path: Path) -> None:
    folder = shards.prepare_folder(tmp_path / "shards", ["x"])
    pieces, computed = shards.computed(folder, NAMES, compute)
    first = list(pieces)
    assert computed == 3
    assert arrays(first) == arrays([compute(number) for number in range(3)])
    again, computed = shards.computed(shards.prepare_folder(tmp_path / "shards", ["x"]), NAMES, forbidden)
    assert computed == 0
    assert arrays(again) == arrays(first)


def test_pieces_of_any_other_work_are_removed(tmp_path: Path) -> None:
    mine = shards.prepare_folder(tmp_path, ["x", 1])
    shards.computed(mine, NAMES, compute)
    (mine / ".c.safetensors.tmp").write_text("half")
    assert shards.prepare_folder(tmp_path, ["x", 1]) == mine
    assert sorted(path.name for path in mine.iterdir()) == [f"{name}.safetensors" for name in NAMES]
    assert shards.prepare_folder(tmp_path, ["x", 2]) != mine
    assert not mine.exists()


@pytest.mark.parametrize("place", [0, 9, 40, 90, 160, -20, -1])
def test_a_damaged_piece_is_computed_again(tmp_path: Path, place: int) -> None:
    folder = shards.prepare_folder(tmp_path, ["x"])
    expected = list(shards.computed(folder, NAMES, compute)[0])
    path = folder / "b.safetensors"
    damaged = bytearray(path.read_bytes())
    for bit in range(8):
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        damaged[place] ^= 1 << bit
        found, computed = shards.computed(folder, NAMES, compute)
        assert arrays(found) == arrays(expected)
        assert computed == 1
    for size in (0, 7, 100):
        path.write_bytes(bytes(damaged[:size]))
        assert shards.computed(folder, NAMES, compute)[1] == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(ArtifactError, match=r"Cannot write in .*shards \(Not a directory\); choose another place"):
        shards.prepare_folder(tmp_path / "shards", ["x"])
