"""Rules: a model is retrained when its dataset has gained images, once for each version, whoever looks and however often."""

import threading
from pathlib import Path

import pytest
from conftest import until
from PIL import Image
from sklearn.datasets import load_digits

from shared import models, rules
from shared.errors import Conflict, DarkroomError, Invalid, NotFound, Unwritable
from shared.jobs import State
from shared.specs import parse
from web import create_app
from worker.importing import import_dataset
from worker.progress import Progress

WISH = {"dataset": "digits", "gained": 8, "model": "digits"}
SCANS = load_digits()


def grow(backend, folder: Path, first: int, count: int, label: int = 0) -> int:
    """Add `count` further scans of a digit to the dataset; its version."""
    (folder / f"digit {label}").mkdir(parents=True)
    for n, scan in enumerate(SCANS.images[SCANS.target == label][first : first + count]):
        image = Image.fromarray((255 - scan * (255 / 16)).astype("uint8")).resize((32, 32), Image.Resampling.BICUBIC)
        image.save(folder / f"digit {label}" / f"{n}.png")
    spec = parse("import", {"dataset": "digits", "source": {"kind": "folder", "path": str(folder)}})
    return import_dataset(spec, folder.name, backend.storage, backend.settings, Progress(lambda _: None))["version"]


def trainings(backend):
    return backend.store.page(kind="train")


def end(backend, job, state=State.FAILED):
    claim = backend.store.claim(job, "main", "w")
    backend.store.finish(claim, state, "Told to.")


def test_a_training_is_ordered_when_the_dataset_has_gained_enough_and_not_before(backend, tmp_path):
    rule = rules.make(backend.storage, WISH)
    rules.look(backend, rule)
    assert (rules.last(backend.storage, rule.id)["gained"], trainings(backend)) == (0, [])
    grow(backend, tmp_path / "a", 30, 5)
    rules.look(backend, rule)
    assert (rules.last(backend.storage, rule.id)["gained"], trainings(backend)) == (5, [])
    grow(backend, tmp_path / "b", 35, 3)
    rules.look(backend, rule)
    (job,) = trainings(backend)
    assert (job.spec["dataset"], job.spec["version"], job.spec["model"], job.spec["rule"]) == ("digits", 3, "digits", rule.id)
    assert (job.spec["start"], job.spec["parent"], job.spec["epochs"], job.spec["image_size"]) == ("digits/v1", "digits/v1", 6, 32)
    assert "retrain digits when digits has gained 8 images" in job.spec["notes"]
    last = rules.last(backend.storage, rule.id)
    assert (last["gained"], last["ordered"], last["job"], last["error"]) == (8, 3, job.id, None)
    assert backend.storage.exists(f"jobs/{job.id}.json")


def test_a_picture_that_is_there_already_is_no_gain_under_whatever_label(backend, digits, tmp_path):
    copies = tmp_path / "copies" / "digit 3"
    copies.mkdir(parents=True)
    for path in (digits / "digit 0").iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    spec = parse("import", {"dataset": "digits", "source": {"kind": "folder", "path": str(copies.parent)}})
    import_dataset(spec, "copies", backend.storage, backend.settings, Progress(lambda _: None))
    assert rules.gained(backend.storage, "digits", 2, {"name": "digits", "version": 1}) == 0
    assert rules.gained(backend.storage, "digits", 2, None) == 120


def test_many_who_look_at_once_order_once(backend, tmp_path):
    grow(backend, tmp_path / "a", 30, 9)
    rule = rules.make(backend.storage, WISH)
    threads = [threading.Thread(target=rules.look, args=(backend, rule)) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(trainings(backend)) == 1


def test_who_died_between_the_order_and_its_note_is_followed_by_one_who_orders_nothing_more(backend, tmp_path):
    grow(backend, tmp_path / "a", 30, 9)
    rule = rules.make(backend.storage, WISH)
    rules.look(backend, rule)
    backend.storage.delete(f"rules/{rule.id}/last.json")
    rules.look(backend, rule)
    (job,) = trainings(backend)
    assert rules.last(backend.storage, rule.id)["job"] == job.id


def test_while_its_training_is_under_way_a_rule_waits_and_a_failed_one_is_not_ordered_again_for_the_same_version(backend, tmp_path):
    grow(backend, tmp_path / "a", 30, 9)
    rule = rules.make(backend.storage, WISH)
    rules.look(backend, rule)
    grow(backend, tmp_path / "b", 39, 1)
    rules.look(backend, rule)
    assert len(trainings(backend)) == 1
    end(backend, trainings(backend)[0].id)
    rules.look(backend, rule)
    assert [job.spec["version"] for job in trainings(backend)] == [3, 2]
    end(backend, trainings(backend)[0].id)
    for _ in range(3):
        rules.look(backend, rule)
    assert len(trainings(backend)) == 2


def test_a_newer_version_of_the_model_is_no_reason_to_order_the_same_again(backend, tmp_path):
    grow(backend, tmp_path / "a", 30, 9)
    rule = rules.make(backend.storage, WISH)
    rules.look(backend, rule)
    end(backend, trainings(backend)[0].id)
    backend.store.redis.delete(*backend.store.redis.keys("darkroom:idem:*"))  # as a day later
    info = models.info(backend.storage, "digits", 1)
    (tmp_path / "files").mkdir()
    backend.storage.publish_version("models/digits", tmp_path / "files", {**info, "job": "another"})
    rules.look(backend, rule)
    assert (rules.last(backend.storage, rule.id)["model_version"], len(trainings(backend))) == (2, 1)


@pytest.mark.parametrize(
    ("gone", "sentence"), [("models/digits", "There is no model 'digits'"), ("datasets/digits", "There is no dataset")]
)
def test_what_a_rule_needs_and_is_gone_is_told_and_healed_when_it_is_back(backend, gone, sentence):
    rule = rules.make(backend.storage, WISH)
    rules.look(backend, rule)
    folder = Path(backend.settings.storage) / gone
    folder.rename(folder.with_name("away"))
    rules.look(backend, rule)
    assert sentence in rules.last(backend.storage, rule.id)["error"]
    assert trainings(backend) == []
    folder.with_name("away").rename(folder)
    rules.look(backend, rule)
    assert rules.last(backend.storage, rule.id)["error"] is None


def test_an_order_that_cannot_be_kept_is_given_again_when_it_can(backend, tmp_path):
    grow(backend, tmp_path / "a", 30, 9)
    rule = rules.make(backend.storage, WISH)
    jobs = Path(backend.settings.storage) / "jobs"
    jobs.write_text("no folder")  # root may write into any folder, but not into a file
    with pytest.raises(Unwritable, match="nothing was ordered"):
        rules.look(backend, rule)
    assert rules.look_at_all(backend)[0].startswith(rule.id)
    jobs.unlink()
    assert rules.look_at_all(backend) == []
    assert [job.state for job in trainings(backend) if not job.state.terminal] == [State.QUEUED]
    assert rules.last(backend.storage, rule.id)["job"] == trainings(backend)[0].id


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gained": 0}, Invalid),
        ({"gained": 10**9}, Invalid),
        ({"start": "/etc/passwd"}, Invalid),
        ({"dataset": "../digits"}, Invalid),
        ({"dataset": "nothing"}, NotFound),
        ({"model": "nothing"}, NotFound),
        ({"id": "0" * 20}, Invalid),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(backend, change, error):
    with pytest.raises(error):
        rules.make(backend.storage, WISH | change)
    assert rules.found(backend.storage) == []


def test_a_rule_is_deleted_and_a_damaged_one_is_told_and_hides_no_other(backend):
    first = rules.make(backend.storage, WISH)
    with pytest.raises(Conflict, match="There is a rule already"):
        rules.make(backend.storage, WISH | {"gained": 3})
    rules.delete(backend.storage, first.id)
    with pytest.raises(NotFound):
        rules.delete(backend.storage, first.id)
    for hostile in ("../models", "x" * 20, "0" * 21):
        with pytest.raises(NotFound):
            rules.get(backend.storage, hostile)
    second = rules.make(backend.storage, WISH)
    backend.storage.write(f"rules/{first.id}/rule.json", b"{")
    with pytest.raises(DarkroomError, match=r"cannot be read\. Delete it"):
        rules.get(backend.storage, first.id)
    assert [sentence.split(":")[0] for sentence in rules.look_at_all(backend)] == [first.id]
    assert rules.last(backend.storage, second.id)["gained"] == 0
    backend.storage.write(f"rules/{second.id}/last.json", b"")
    with pytest.raises(DarkroomError, match=r"cannot be read\. Delete it"):
        rules.last(backend.storage, second.id)


def test_rules_are_made_listed_and_deleted_over_the_api(backend):
    client = create_app(backend.settings).test_client()
    made = client.post("/api/v1/rules", json=WISH)
    assert (made.status_code, made.json["start"], made.json["last"]) == (201, "model", None)
    assert client.get(made.location).json == made.json
    assert client.get("/api/v1/rules?dataset=digits").json["rules"] == [made.json]
    assert client.get("/api/v1/rules?dataset=others").json["rules"] == []
    assert client.post("/api/v1/rules", json=WISH).status_code == 409
    refused = client.post("/api/v1/rules", json={**WISH, "gained": "<b>"})
    assert (refused.status_code, "gained" in refused.json["detail"]) == (422, True)
    assert client.delete(made.location).status_code == 204
    assert client.get(made.location).status_code == 404


def test_rules_stand_on_the_page_of_their_dataset_with_what_came_of_them(backend, tmp_path):
    app = create_app(backend.settings)
    app.config["WTF_CSRF_ENABLED"] = False
    client = app.test_client()
    refused = client.post("/datasets/digits/rules", data={"gained": "0", "model": "digits", "start": "imagenet"})
    assert refused.status_code == 422
    assert "greater than or equal to 1" in refused.text
    assert '<option value="imagenet" selected>' in refused.text
    assert client.post("/datasets/digits/rules", data={"gained": "8", "model": "digits", "start": "model"}).status_code == 303
    grow(backend, tmp_path / "a", 30, 9)
    rules.look_at_all(backend)
    (job,) = trainings(backend)
    page = client.get("/datasets/digits/v/2").text
    assert "v2 has 9; for v2 it ordered" in page
    assert f"/jobs/{job.id}" in page
    assert "Retrain digits on v2" in page
    assert "Ordered by a rule: " in client.get(f"/jobs/{job.id}").text
    (rule,) = rules.found(backend.storage)
    assert client.post(f"/rules/{rule.id}/delete").status_code == 303
    assert rules.found(backend.storage) == []
    assert "a rule that was deleted since" in client.get(f"/jobs/{job.id}").text


def test_a_worker_looks_at_the_rules_by_itself(backend, start_worker, tmp_path):
    grow(backend, tmp_path / "a", 30, 9)
    rule = rules.make(backend.storage, WISH)
    start_worker("scrape")
    until(lambda: trainings(backend), 30)
    assert trainings(backend)[0].spec["rule"] == rule.id
