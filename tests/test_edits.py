"""What a person decides about the images of a dataset: a log that loses nothing, and the version that is made of it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_importing import Room
from test_training import digits, publish

from shared import datasets, edits
from shared.edits import Edit, parse_edit
from shared.errors import Conflict, DarkroomError, Invalid, NotFound
from shared.storage import Storage, version_name
from worker.examining import Collection
from worker.progress import Progress

NAME = "digits"
FREEZE = {"kind": "edits"}


@pytest.fixture
def room(tmp_path):
    """The dataset `digits`: three classes of four scans each, made by an import."""
    room = Room(tmp_path)
    for n, (label, data) in enumerate(digits(per_class=4)):
        room.put(f"{label}/{n}.png", data=data)
    room.run(dataset=NAME)
    return room


def shown(storage, version=None):
    """{sha256: label} of what a version keeps."""
    return {row["sha256"]: row["label"] for row in datasets.rows(storage, NAME, version or datasets.latest(storage, NAME))}


def of(storage, label):
    """The images of a class of the newest version."""
    return [sha256 for sha256, given in shown(storage).items() if given == label]


def decide(storage, sha256, action="relabel", label=None, why=""):
    said = {"sha256": sha256, "action": action, "why": why} | ({"label": label} if label else {})
    return edits.decide(storage, NAME, parse_edit(said))


def state(entries):
    """(sha256, action, label) each."""
    return [(edit.sha256, edit.action, edit.label) for edit in entries]


def freeze(room, job="job2"):
    return room.run(FREEZE, job=job, dataset=NAME)


# -- the log ----------------------------------------------------------------------------------------------------------


def test_an_entry_says_what_was_decided_and_what_was_there_before(room):
    one = of(room.storage, "digit 0")[0]
    edit = decide(room.storage, one, label=" digit 2 ", why="suspect of digits/v2")
    assert (edit.sha256, edit.ext, edit.action, edit.label, edit.before) == (one, "png", "relabel", "digit 2", "digit 0")
    assert (edit.why, edit.version) == ("suspect of digits/v2", 1)
    assert edits.log(room.storage, NAME) == edits.pending(room.storage, NAME) == [edit]
    assert Edit(**room.storage.read_json(f"datasets/digits/edits/{edit.id}.json")) == edit


def test_the_last_decision_about_an_image_counts_and_undo_takes_all_back(room):
    one, two = of(room.storage, "digit 0")[:2]
    decide(room.storage, one, label="digit 1")
    decide(room.storage, two, "remove")
    decide(room.storage, one, label="digit 2")
    assert state(edits.pending(room.storage, NAME)) == [(two, "remove", None), (one, "relabel", "digit 2")]
    edits.undo(room.storage, NAME, one)
    assert edits.undo(room.storage, NAME, one) is None
    assert state(edits.pending(room.storage, NAME)) == [(two, "remove", None)]
    assert [edit.action for edit in edits.log(room.storage, NAME)] == ["relabel", "remove", "relabel", "undo"]


def test_a_keep_changes_nothing_and_takes_the_place_of_a_relabel(room):
    one = of(room.storage, "digit 0")[0]
    decide(room.storage, one, label="digit 1")
    decide(room.storage, one, "keep")
    assert edits.pending(room.storage, NAME) == []
    assert edits.decided(room.storage, NAME)[one].action == "keep"


def test_the_label_it_has_given_by_hand_is_a_keep(room):
    assert decide(room.storage, of(room.storage, "digit 0")[0], label="digit 0").action == "keep"


def test_people_who_decide_at_once_lose_nothing(room):
    everything = list(shown(room.storage))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: decide(Storage(room.storage.url, room.storage.cache), everything[n % 12], label=f"n {n % 12}"), range(96)))
    assert len(edits.log(room.storage, NAME)) == 96
    assert {edit.sha256: edit.label for edit in edits.pending(room.storage, NAME)} == {sha: f"n {n}" for n, sha in enumerate(everything)}


def test_the_log_lives_on_a_remote_storage_too(tmp_path):
    remote = Storage(f"memory://{tmp_path.name}", tmp_path / "cache")
    rows = publish(remote, tmp_path / "files", digits(per_class=2))
    for _ in range(2):  # within one millisecond, perhaps
        decide(remote, rows[0]["sha256"], label="other")
        edits.undo(remote, NAME, rows[0]["sha256"])
    assert edits.pending(remote, NAME) == []
    decide(remote, rows[0]["sha256"], "remove")
    assert state(edits.pending(remote, NAME)) == [(rows[0]["sha256"], "remove", None)]


@pytest.mark.parametrize(
    "said",
    [
        {"action": "relabel", "label": ""},
        {"action": "relabel", "label": "a\u202eb"},
        {"action": "relabel", "label": "a\x00b"},
        {"action": "relabel", "label": "\ud800"},
        {"action": "relabel", "label": "x" * 101},
        {"action": "relabel", "label": None},
        {"action": "relabel"},
        {"action": "keep", "label": "digit 1"},
        {"action": "remove", "label": "digit 1"},
        {"action": "undo"},
        {"action": ["keep"]},
        {"action": "keep", "why": "a\nb"},
        {"action": "keep", "why": "\udfff"},
        {"action": "keep", "why": "x" * 201},
        {"action": "keep", "id": "../../x"},
        {"action": "keep", "sha256": "../../../etc/passwd"},
        {"action": "keep", "sha256": "0" * 64 + "\n"},
        {"action": "keep", "sha256": 7},
    ],
)
def test_what_is_no_decision_is_refused(said):
    with pytest.raises(Invalid):
        parse_edit({"sha256": "0" * 64, **said})


def test_markup_is_a_label_like_any_other(room):
    assert decide(room.storage, of(room.storage, "digit 0")[0], label="<script>alert(1)</script>").label == "<script>alert(1)</script>"


def test_what_is_not_there_cannot_be_decided_about(room):
    with pytest.raises(NotFound, match="has no image 000000000000"):
        decide(room.storage, "0" * 64, "keep")
    with pytest.raises(NotFound, match="no dataset 'nothing'"):
        edits.decide(room.storage, "nothing", parse_edit({"sha256": "0" * 64, "action": "keep"}))
    for ask in (edits.log, edits.pending, edits.decided):
        with pytest.raises(Invalid):
            ask(room.storage, "../models")
    assert not room.storage.list("datasets/digits/edits")


def test_a_label_that_differs_by_case_alone_is_refused_at_once(room):
    one, two = of(room.storage, "digit 0")[:2]
    with pytest.raises(Invalid, match="write 'digit 1'"):
        decide(room.storage, one, label="Digit 1")
    decide(room.storage, one, label="seven")
    with pytest.raises(Invalid, match="write 'seven'"):
        decide(room.storage, two, label="Seven")


# -- the version ------------------------------------------------------------------------------------------------------


def test_the_next_version_has_the_changes_and_names_them(room):
    zero, gone, kept = of(room.storage, "digit 0")[:3]
    decide(room.storage, zero, label="digit 1")
    decide(room.storage, gone, "remove")
    decide(room.storage, kept, "keep")
    assert freeze(room) == {"dataset": NAME, "version": 2, "images": 11, "dropped": 1}
    before = shown(room.storage, 1)
    assert shown(room.storage, 2) == {**{sha256: label for sha256, label in before.items() if sha256 != gone}, zero: "digit 1"}
    (dropped,) = datasets.rows(room.storage, NAME, 2, status="dropped")
    assert (dropped["sha256"], dropped["reason"]) == (gone, "removed")
    assert dropped["detail"] == "A person removed it from the class 'digit 0'."
    info = datasets.info(room.storage, NAME)
    assert (info["parent"], info["source"]["kind"], info["edits"]) == (1, "edits", {"relabel": 1, "remove": 1})
    assert edits.pending(room.storage, NAME) == edits.unmade(room.storage, NAME) == []
    assert set(edits.decided(room.storage, NAME)) == {zero, gone, kept}


def test_a_job_whose_worker_died_is_done_once(room):
    decide(room.storage, of(room.storage, "digit 0")[0], label="digit 1")
    assert freeze(room) == freeze(room)
    assert datasets.latest(room.storage, NAME) == 2
    with pytest.raises(DarkroomError, match="No change of digits waits"):
        freeze(room, job="job3")


def test_an_entry_with_an_earlier_clock_that_comes_after_the_version_waits_for_the_next(room):
    one, late = of(room.storage, "digit 0")[:2]
    decide(room.storage, one, label="digit 1")
    freeze(room)
    entry = {**edits.as_json(edits.log(room.storage, NAME))[0], "id": "0" * 20, "at": 1.0, "sha256": late}
    room.storage.write("datasets/digits/edits/00000000000000000000.json", json.dumps(entry).encode())
    assert state(edits.pending(room.storage, NAME)) == [(late, "relabel", "digit 1")]


def test_edits_of_a_version_that_another_job_has_passed_over_wait_again(room):
    one = of(room.storage, "digit 0")[0]
    decide(room.storage, one, label="digit 1")
    other = Collection(room.storage, NAME, Progress(lambda _: None))
    other.carry = lambda: None  # what happens between its last look and its publishing
    freeze(room)
    other.publish("job3", {"kind": "folder"})
    assert shown(room.storage)[one] == "digit 0"
    assert state(edits.pending(room.storage, NAME)) == [(one, "relabel", "digit 1")]


def test_an_import_that_began_before_keeps_what_was_corrected_meanwhile(room):
    one, gone = of(room.storage, "digit 0")[:2]
    running = Collection(room.storage, NAME, Progress(lambda _: None))
    decide(room.storage, one, label="digit 1")
    decide(room.storage, gone, "remove")
    freeze(room)
    running.publish("job3", {"kind": "folder"})
    assert datasets.latest(room.storage, NAME) == 3
    assert shown(room.storage, 3) == shown(room.storage, 2)
    assert edits.pending(room.storage, NAME) == []


def test_a_removed_image_comes_in_again_only_when_its_removal_is_undone(room):
    gone = of(room.storage, "digit 0")[0]
    decide(room.storage, gone, "remove")
    freeze(room)
    room.run(job="job3", dataset=NAME)  # the same folder as at first
    assert gone not in shown(room.storage)
    (row,) = [row for row in datasets.rows(room.storage, NAME, 3, status="dropped") if row["sha256"] == gone]
    assert (row["reason"], gone in row["detail"]) == ("removed", True)
    edits.undo(room.storage, NAME, gone)
    room.run(job="job4", dataset=NAME)
    assert shown(room.storage)[gone] == "digit 0"


def test_a_relabel_that_a_version_has_is_not_undone(room):
    one = of(room.storage, "digit 0")[0]
    decide(room.storage, one, label="digit 1")
    freeze(room)
    with pytest.raises(Conflict, match="part of digits v2"):
        edits.undo(room.storage, NAME, one)
    decide(room.storage, one, label="digit 0")
    freeze(room, job="job3")
    assert shown(room.storage, 3) == shown(room.storage, 1)


def test_a_class_left_with_one_image_makes_no_version_and_the_edits_stay(room):
    for sha256 in of(room.storage, "digit 0")[:3]:
        decide(room.storage, sha256, "remove")
    with pytest.raises(DarkroomError, match=r"'digit 0' has 1\. Dropped: 3 removed\. No dataset was made"):
        freeze(room)
    assert len(edits.pending(room.storage, NAME)) == 3
    assert room.storage.list("datasets/digits") == ["edits", version_name(1)]


def test_a_class_may_be_new_or_go_with_its_last_image(room):
    for sha256 in of(room.storage, "digit 0"):
        decide(room.storage, sha256, label="nought")
    freeze(room)
    assert datasets.info(room.storage, NAME)["classes"] == {"digit 1": 4, "digit 2": 4, "nought": 4}
