"""Aliases of models: atomic moves, a log, a way back."""

import threading
from pathlib import Path

import pytest

from shared import aliases, models
from shared.errors import Conflict, Invalid, NotFound
from shared.storage import Storage


@pytest.fixture
def storage(tmp_path):
    """Three versions of a model that nobody loads."""
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    for n in range(3):
        folder = tmp_path / f"files{n}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        storage.publish_version("models/clothing", folder, {"model": "clothing", "job": f"job{n}", "created": n})
    return storage


def test_an_alias_is_a_version_wherever_a_model_is_named(storage):
    assert aliases.pointed(storage, "clothing") == {}
    aliases.move(storage, "clothing", "production", 2)
    assert models.resolve(storage, "clothing@production") == ("clothing", 2)
    assert models.resolve(storage, "clothing") == ("clothing", 3)
    with pytest.raises(NotFound, match="no alias 'staging'; there is production"):
        models.resolve(storage, "clothing@staging")


def test_moves_are_logged_and_taken_back(storage):
    for version in (1, 3):
        aliases.move(storage, "clothing", "production", version)
    assert aliases.back(storage, "clothing", "production")["version"] == 1
    log = aliases.log(storage, "clothing", "production")
    assert [(move["before"], move["version"]) for move in log] == [(3, 1), (1, 3), (None, 1)]
    assert log == sorted(log, key=lambda move: -move["at"])


def test_there_is_no_way_back_from_the_first_move(storage):
    with pytest.raises(NotFound, match="no alias 'production'"):
        aliases.back(storage, "clothing", "production")
    aliases.move(storage, "clothing", "production", 1)
    with pytest.raises(Conflict, match="nothing to go back to"):
        aliases.back(storage, "clothing", "production")


def test_an_alias_that_was_taken_away_points_nowhere(storage):
    aliases.move(storage, "clothing", "production", 1)
    aliases.move(storage, "clothing", "production", None)
    assert aliases.pointed(storage, "clothing") == {}


def test_an_alias_whose_first_move_is_not_written_yet_is_none(storage):
    Path(storage.url, "models/clothing/aliases/production").mkdir(parents=True)
    assert aliases.pointed(storage, "clothing") == {}


def test_of_many_moves_at_once_each_is_logged_once_and_the_last_counts(storage):
    threads = [threading.Thread(target=aliases.move, args=(storage, "clothing", "production", n % 3 + 1)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = aliases.log(storage, "clothing", "production")
    assert sorted(move["version"] for move in log) == sorted([1, 2, 3] * 4)
    assert aliases.pointed(storage, "clothing")["production"] == log[0]["version"]


@pytest.mark.parametrize("alias", ["../x", "Production", "a b", "", "<b>"])
def test_an_alias_has_a_plain_name(storage, alias):
    with pytest.raises(Invalid):
        aliases.move(storage, "clothing", alias, 1)


def test_a_version_is_deleted_unless_an_alias_points_to_it_and_its_number_stays_taken(storage, tmp_path):
    aliases.move(storage, "clothing", "production", 3)
    with pytest.raises(Conflict, match="clothing/v3 is production"):
        models.delete(storage, "clothing", 3)
    aliases.move(storage, "clothing", "production", 1)
    models.delete(storage, "clothing", 3)
    assert models.resolve(storage, "clothing") == ("clothing", 2)
    assert storage.list("models/clothing/v0003") == ["deleted.json"]
    with pytest.raises(NotFound):
        models.delete(storage, "clothing", 3)
    with pytest.raises(NotFound, match="no version 3"):
        aliases.back(storage, "clothing", "production")
    assert aliases.pointed(storage, "clothing") == {"production": 1}
    (tmp_path / "more").mkdir()
    assert storage.publish_version("models/clothing", tmp_path / "more", {"model": "clothing", "job": "job9", "created": 9}) == 4
