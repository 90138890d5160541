"""What a person decides about the images of a dataset: a log that loses nothing, and the version that is made of it."""

import html
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from handwriting import digits, publish
from playwright.sync_api import expect, sync_playwright
from test_importing import Room
from test_pages import make_model
from test_pages import publish as make_version
from werkzeug.serving import make_server

from cli.main import cli
from shared import datasets, edits, models
from shared.edits import Edit, parse_action, parse_edit
from shared.errors import Conflict, DarkroomError, Invalid, NotFound
from shared.jobs import JobStore, State, connect
from shared.specs import ImportSpec
from shared.storage import Storage, version_name
from web import create_app
from worker.examining import Collection
from worker.importing import import_dataset
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


def decide_all(storage, *said, entry=None):
    """One action of (sha256, action) or (sha256, label) each."""
    whole = [
        {"sha256": sha256} | ({"action": do} if do in {"keep", "remove"} else {"action": "relabel", "label": do}) for sha256, do in said
    ]
    action = parse_action({"edits": whole, **({"id": entry} if entry else {})})
    return edits.decide_all(storage, NAME, action.edits, action.id)


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


def test_many_images_are_decided_about_in_one_entry_and_taken_back_with_it(room):
    one, two, three, four = of(room.storage, "digit 0")
    decide(room.storage, three, label="digit 2")
    made = decide_all(room.storage, (one, "digit 1"), (two, "remove"), (three, "keep"), (four, "digit 0"))
    assert [(edit.sha256, edit.action, edit.label, edit.before) for edit in made] == [
        (one, "relabel", "digit 1", "digit 0"), (two, "remove", None, "digit 0"), (three, "keep", None, "digit 0"), (four, "keep", None, "digit 0")
    ]  # fmt: skip
    assert len(room.storage.list("datasets/digits/edits")) == 2
    assert len({edit.id for edit in made}) == 1
    assert edits.log(room.storage, NAME)[1:] == list(made)
    assert state(edits.pending(room.storage, NAME)) == [(one, "relabel", "digit 1"), (two, "remove", None)]
    edits.undo_entry(room.storage, NAME, made[0].id)
    assert state(edits.pending(room.storage, NAME)) == [(three, "relabel", "digit 2")]
    assert set(edits.decided(room.storage, NAME)) == {three}


def test_an_action_of_thousands_is_one_file_and_is_read_as_it_was_written(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    rows = [datasets.blank_row(sha256=f"{n:064x}", ext="png", label=f"n {n % 2}", status="kept") for n in range(5000)]
    info = {"dataset": NAME, "job": "", "created": 0, **datasets.summary(rows)}
    make_version(storage, f"datasets/{NAME}", {"manifest.parquet": datasets.manifest_bytes(rows)}, info)
    made = decide_all(storage, *((row["sha256"], "remove") for row in rows))
    assert len(storage.list("datasets/digits/edits")) == 1
    assert edits.log(Storage(storage.url, storage.cache), NAME) == list(made)
    assert len(edits.pending(storage, NAME)) == 5000
    edits.undo_entry(storage, NAME, made[0].id)
    assert edits.pending(storage, NAME) == []


def test_an_entry_that_is_taken_back_lets_count_what_was_before_and_what_came_after(room):
    one, two = of(room.storage, "digit 0")[:2]
    first = decide(room.storage, one, label="digit 1")
    second = decide(room.storage, one, label="digit 2")
    edits.undo_entry(room.storage, NAME, second.id)
    assert state(edits.pending(room.storage, NAME)) == [(one, "relabel", "digit 1")]
    both = decide_all(room.storage, (one, "remove"), (two, "remove"))
    decide(room.storage, two, label="digit 2")  # somebody else, perhaps
    edits.undo_entry(room.storage, NAME, both[0].id)
    assert state(edits.pending(room.storage, NAME)) == [(one, "relabel", "digit 1"), (two, "relabel", "digit 2")]
    edits.undo_entry(room.storage, NAME, first.id)
    assert state(edits.pending(room.storage, NAME)) == [(two, "relabel", "digit 2")]


def test_an_entry_is_taken_back_once_and_an_undo_not_at_all(room):
    one = decide(room.storage, of(room.storage, "digit 0")[0], "remove")
    undone = edits.undo_entry(room.storage, NAME, one.id)
    assert (undone.action, undone.undoes, undone.sha256) == ("undo", one.id, "")
    assert edits.undo_entry(room.storage, NAME, one.id) is None
    assert len(edits.log(room.storage, NAME)) == 2
    with pytest.raises(Conflict, match="an undo itself"):
        edits.undo_entry(room.storage, NAME, undone.id)
    with pytest.raises(NotFound, match="no entry 00000000000000000000"):
        edits.undo_entry(room.storage, NAME, "0" * 20)
    with pytest.raises(Invalid):
        edits.undo_entry(room.storage, NAME, "../../../models/x")


def test_what_is_sent_twice_under_one_id_is_one_entry(room):
    one, two = of(room.storage, "digit 0")[:2]
    made = decide_all(room.storage, (one, "remove"), (two, "remove"), entry="a" * 20)
    assert decide_all(room.storage, (one, "remove"), (two, "remove"), entry="a" * 20) == made
    assert edits.log(room.storage, NAME) == list(made)


def test_an_action_is_taken_whole_or_not_at_all(room):
    one, two, three = of(room.storage, "digit 0")[:3]
    with pytest.raises(NotFound, match="has no image 000000000000… and 1 more of these"):
        decide_all(room.storage, (one, "remove"), ("0" * 64, "remove"), ("1" * 64, "remove"))
    with pytest.raises(Invalid, match="write 'digit 1'"):
        decide_all(room.storage, (one, "remove"), (two, "DIGIT 1"))
    with pytest.raises(Invalid, match="by upper and lower case alone"):
        decide_all(room.storage, (one, "seven"), (two, "Seven"))
    assert edits.log(room.storage, NAME) == []
    decide_all(room.storage, (one, "seven"), (two, "seven"))
    with pytest.raises(Invalid, match="write 'seven'"):
        decide_all(room.storage, (three, "SEVEN"))


def test_entries_of_an_earlier_darkroom_are_read(room):
    one = of(room.storage, "digit 0")[0]
    old = {
        "id": "0" * 20,
        "at": 1.0,
        "sha256": one,
        "ext": "png",
        "action": "remove",
        "label": None,
        "before": "digit 0",
        "why": "",
        "version": 1,
    }
    room.storage.write_json(f"datasets/digits/edits/{old['id']}.json", old)
    assert state(edits.pending(room.storage, NAME)) == [(one, "remove", None)]
    edits.undo_entry(room.storage, NAME, old["id"])
    assert edits.pending(room.storage, NAME) == []


@pytest.mark.parametrize(
    "said", [{}, {"edits": []}, {"edits": {}}, {"edits": [{}]}, {"id": "../x"}, {"id": ""}, {"id": "a" * 21}, {"more": 1}]
)
def test_what_is_no_action_is_refused(said):
    with pytest.raises(Invalid):
        parse_action({"edits": [{"sha256": "0" * 64, "action": "keep"}]} | said if said else said)


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


def test_a_version_includes_whole_entries_and_says_so_when_one_is_taken_back(room):
    one, two = of(room.storage, "digit 0")[:2]
    relabelled = decide_all(room.storage, (one, "digit 1"), (two, "digit 2"))
    gone = decide_all(room.storage, *((sha256, "remove") for sha256 in of(room.storage, "digit 1")[:2]))
    taken_back = decide_all(room.storage, *((sha256, "remove") for sha256 in of(room.storage, "digit 2")))
    edits.undo_entry(room.storage, NAME, taken_back[0].id)
    assert freeze(room)["images"] == 10
    assert (shown(room.storage)[one], shown(room.storage)[two]) == ("digit 1", "digit 2")
    assert datasets.info(room.storage, NAME)["edits"] == {"relabel": 2, "remove": 2}
    assert edits.unmade(room.storage, NAME) == []
    assert [edit.id for edit in edits.log(room.storage, NAME)][:2] == [relabelled[0].id] * 2
    with pytest.raises(Conflict, match="part of digits v2"):
        edits.undo_entry(room.storage, NAME, relabelled[0].id)
    edits.undo_entry(room.storage, NAME, gone[0].id)
    assert edits.removed(room.storage, NAME) == set()
    room.run(job="job3", dataset=NAME)  # the same folder as at first: what was removed comes in again
    assert len(shown(room.storage)) == 12


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


# -- pages ------------------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def site(settings, tmp_path):
    """The pages on the dataset `digits` and a model of it with three suspects, all of the digit 0."""
    storage = Storage(settings.storage, settings.cache)
    rows = publish(storage, tmp_path / "files", digits(per_class=4))
    make_model(storage, rows)
    found = [{"sha256": row["sha256"], "ext": "png", "actual": "digit 0", "suggested": "digit 1"} for row in rows[:3]]
    suspects = [{**each, "probability": 0.9, "given": 0.02} for each in found]
    report = {**models.report(storage, "clothing", 1), "top_losses": [], "mistakes": [], "suspects": suspects}
    info = {**models.info(storage, "clothing", 1), "job": "2", "dataset": {"name": NAME, "version": 1, "hash": "0", "images": 12}}
    make_version(storage, "models/clothing", {"report.json": json.dumps(report).encode(), "model.safetensors": b"0"}, info)
    app = create_app(settings)
    app.config["WTF_CSRF_ENABLED"] = False
    return SimpleNamespace(client=app.test_client(), storage=storage, images=[row["sha256"] for row in rows], settings=settings)


def suspected(client, **query):
    """The section of the model's page, and the ids of the cells that are still to be looked at."""
    text = client.get("/models/clothing/v/2", query_string=query).text
    section = re.search(r'<section id="suspects">.*?</section>', text, re.DOTALL)[0]
    return section, re.findall(r'id="suspect-(\w+)"', section.partition("kept-suspects")[0])


def send(site, htmx=False, **form):
    return site.client.post(f"/datasets/{NAME}/edits", data=form, headers={"HX-Request": "true"} if htmx else {})


def test_a_suspect_is_decided_without_a_script_and_what_was_decided_is_shown(site):
    one, two, three = site.images[:3]
    section, cells = suspected(site.client)
    assert cells == [sha256[:16] for sha256 in (one, two, three)]
    assert "Make it digit 1" in section
    assert send(site, sha256=one, model="clothing/v2", label="digit 1").location == "/models/clothing/v/2#suspects"
    send(site, sha256=two, model="clothing/v2", action="keep")
    send(site, sha256=three, model="clothing/v2", action="remove")
    section, cells = suspected(site.client)
    assert cells == [one[:16], three[:16]]
    assert re.search("digit 0 becomes <strong>digit 1</strong>.*to be removed.*1 image kept.*kept: it is digit 0", section, re.DOTALL)
    assert re.search(r"<strong>2 changes</strong> of digits wait\..*Make version 2", section, re.DOTALL)
    assert {edit.why for edit in edits.log(site.storage, NAME)} == {"suspect of clothing/v2"}
    for sha256 in (one, two, three):
        send(site, sha256=sha256, model="clothing/v2", action="undo")
    assert suspected(site.client)[1] == [one[:16], two[:16], three[:16]]


def test_with_htmx_the_cell_and_the_count_are_replaced_and_a_wrong_label_is_told_in_the_cell(site):
    one = site.images[0]
    answer = send(site, htmx=True, sha256=one, model="clothing/v2", label="digit 2")
    assert (answer.status_code, answer.text.count("<li"), "<html" in answer.text) == (200, 1, False)
    assert re.search(r'becomes <strong>digit 2</strong>.*id="waiting" hx-swap-oob="true">.*1 change<', answer.text, re.DOTALL)
    answer = send(site, htmx=True, sha256=site.images[1], model="clothing/v2", label="DIGIT 2")
    assert (answer.status_code, "write &#39;digit 2&#39;" in answer.text, 'value="DIGIT 2"' in answer.text) == (200, True, True)
    answer = send(site, htmx=True, sha256=one, action="undo")
    assert re.search(r'id="waiting" hidden', answer.text)


def test_a_label_is_text_wherever_it_is_shown(site):
    send(site, sha256=site.images[0], model="clothing/v2", label=HOSTILE)
    there = f"/datasets/digits/v/1/images/{site.images[0]}"
    for page in ("/models/clothing/v/2", "/datasets/digits/v/1", "/datasets/digits/edits", there):
        text = site.client.get(page).text
        assert HOSTILE not in text
        assert html.escape(HOSTILE) in text, page


def test_what_cannot_be_decided_is_a_sentence(site):
    assert send(site, sha256="0" * 64, action="keep").status_code == 404
    assert "named by the SHA-256 of its bytes" in send(site, sha256="../x", action="keep").text
    assert send(site, sha256=site.images[0], action="burn").status_code == 422
    assert site.client.post("/datasets/nothing/edits", data={"sha256": "0" * 64, "action": "keep"}).status_code == 404
    assert site.client.get("/datasets/nothing/edits").status_code == 404
    assert site.client.post("/datasets/digits/edits/version").status_code == 409
    assert edits.log(site.storage, NAME) == []


def test_the_page_of_an_image_decides_and_undoes(site):
    one = site.images[0]
    there = f"/datasets/digits/v/1/images/{one}"
    assert send(site, sha256=one, version=1, label="digit 2").location == there
    assert "digit 0 becomes <strong>digit 2</strong>" in site.client.get(there).text
    answer = send(site, htmx=True, sha256=one, version=1, action="undo")
    assert (answer.text.count('id="deciding"'), "Is <strong>digit 0</strong> right?" in answer.text) == (1, True)


def test_the_dataset_shows_what_waits_and_orders_the_version_whose_job_leads_to_a_retrain(site):
    one = site.images[0]
    # of an imported model no dataset is known, and no page minds
    site.storage.write_json(
        "models/theirs/v0001/info.json", {"model": "theirs", "version": 1, "created": 1, "imported": {"at": 1, "from": {}}}
    )
    send(site, sha256=one, model="clothing/v2", label="digit 2")
    for page in ("/datasets/digits/v/1", "/datasets/digits/edits"):
        text = site.client.get(page).text
        assert f'id="change-{one[:16]}"' in text
        assert "suspect of clothing/v2" in text
    there = site.client.post("/datasets/digits/edits/version", data={"model": "clothing"}).location
    store = JobStore(connect(site.settings.redis_url))
    job = store.get(there.rsplit("/", 1)[-1])
    assert (job.kind, job.spec["source"]) == ("import", {"kind": "edits", "model": "clothing/v2"})
    claim = store.claim(job.id, "main", "tester")
    spec = ImportSpec.model_validate(job.spec)
    store.finish(claim, State.DONE, "", import_dataset(spec, job.id, site.storage, site.settings, Progress(lambda _: None)))
    text = site.client.get(there).text
    assert "Correct digits" in text
    assert "/datasets/digits/v/2" in text
    assert "/trainings/new?retrain=clothing/v2" in text
    assert "1 relabelled" in site.client.get("/datasets/digits/v/2").text
    section, cells = suspected(site.client)
    assert one[:16] not in cells
    assert "1 suspect has another label in the newest version" in section
    assert "hidden" in re.search(r'<div class="waiting"[^>]*>', section)[0]


def test_many_suspects_are_shown_when_asked_for(site):
    report = models.report(site.storage, "clothing", 2)
    more = [{**report["suspects"][0], "sha256": sha256, "actual": f"digit {n // 4}"} for n, sha256 in enumerate(site.images)]
    rows = publish(site.storage, site.storage.cache.parent / "more", [*digits(per_class=4), *digits(per_class=6)[4:6]])
    more += [{**report["suspects"][0], "sha256": row["sha256"]} for row in rows[12:]]
    site.storage.write_json("models/clothing/v0002/report.json", {**report, "suspects": more})
    section, cells = suspected(site.client)
    assert (len(cells), "Show all 14" in section) == (12, True)
    assert len(suspected(site.client, suspects="all")[1]) == 14


def test_the_api_decides_lists_and_undoes(site):
    base, one = f"/api/v1/datasets/{NAME}/edits", site.images[0]
    answer = site.client.post(base, json={"sha256": one, "action": "relabel", "label": "digit 1", "why": "seen by eye"})
    assert (answer.status_code, answer.json["before"], answer.json["why"]) == (201, "digit 0", "seen by eye")
    site.client.post(base, json={"sha256": site.images[1], "action": "remove"})
    page = site.client.get(f"{base}?limit=1").json
    assert (page["total"], page["next"], page["version"], page["edits"][0]["label"]) == (2, 1, 2, "digit 1")
    assert site.client.delete(f"{base}/{one}").status_code == site.client.delete(f"{base}/{one}").status_code == 204
    assert [edit["action"] for edit in site.client.get(base).json["edits"]] == ["remove"]
    for said in ({"sha256": one, "action": "relabel"}, {"sha256": one}, {"sha256": "0" * 64, "action": "keep", "x": 1}):
        assert site.client.post(base, json=said).status_code == 422
    assert site.client.post("/api/v1/datasets/nothing/edits", json={"sha256": "0" * 64, "action": "keep"}).status_code == 404
    assert site.client.post(f"/api/v1/datasets/{NAME}/import", json={"source": {"kind": "edits", "model": "none"}}).status_code == 404


def test_the_api_takes_many_at_once_and_takes_an_entry_back(site):
    base, entry = f"/api/v1/datasets/{NAME}/edits", "b" * 20
    said = [{"sha256": sha256, "action": "remove", "why": "review"} for sha256 in site.images[:3]]
    for _ in range(2):  # a repetition is the same entry
        answer = site.client.post(base, json={"id": entry, "edits": said})
        assert (answer.status_code, answer.json["id"], answer.json["images"], answer.json["version"]) == (201, entry, 3, 1)
    assert site.client.get(base).json["total"] == 3
    assert site.client.delete(f"{base}/{entry}").status_code == site.client.delete(f"{base}/{entry}").status_code == 204
    assert site.client.get(base).json["total"] == 0
    assert site.client.delete(f"{base}/{'c' * 20}").status_code == 404
    assert site.client.post(base, json={"edits": [*said, {"sha256": "0" * 64, "action": "keep"}]}).status_code == 404
    assert "edits" in site.client.post(base, json={"edits": [{"sha256": "x"}]}).json["field"]
    assert len(edits.log(site.storage, NAME)) == 4


@pytest.mark.slow
def test_the_command_line_corrects_a_dataset_with_a_real_worker(with_model, start_worker):
    storage = Storage(with_model.storage, with_model.cache)
    assert isinstance(models.report(storage, "digits", 1)["suspects"], list)
    one, two = of(storage, "digit 0")[:2]
    server = make_server("127.0.0.1", 0, create_app(with_model), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:

        def run(*args):
            return CliRunner().invoke(cli, ["--url", f"http://127.0.0.1:{server.port}", "dataset", *args])

        assert run("edit", NAME, one, "--relabel", "digit 3", "--why", "seen by eye").exit_code == 0
        assert run("edit", NAME, two, "--remove").exit_code == 0
        assert run("edit", NAME, two, "--undo").exit_code == 0
        assert run("edit", NAME, one).exit_code == run("edit", NAME, one, "--keep", "--undo").exit_code == 2
        assert run("edit", NAME, "0" * 64, "--keep").exit_code == 1
        assert f"{one}\trelabel\tdigit 0\tdigit 3\tseen by eye" in run("edits", NAME).output
        start_worker("scrape")
        assert json.loads(run("freeze", NAME, "--wait", "--json").stdout)["result"]["version"] == 2
        assert shown(storage, 2)[one] == "digit 3"
        assert run("freeze", NAME).exit_code == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser_suspects_are_decided_in_place(site, chromium):
    server = make_server("127.0.0.1", 0, create_app(site.settings), threaded=True)  # with its tokens
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.goto(f"http://127.0.0.1:{server.port}/models/clothing/v/2")
            page.evaluate("window.still = true")
            cells = page.locator("#suspects .suspect")
            cells.nth(0).get_by_role("button", name="Make it digit 1").click()
            expect(cells.nth(0)).to_contain_text("digit 0 becomes digit 1")
            expect(cells.nth(0).get_by_role("button", name="Undo")).to_be_focused()
            cells.nth(1).get_by_role("button", name="Remove").click()
            expect(page.locator("#waiting")).to_contain_text("2 changes")
            cells.nth(1).get_by_role("button", name="Undo").click()
            expect(page.locator("#waiting")).to_contain_text("1 change of digits waits")
            cells.nth(1).get_by_role("button", name="Keep").click()
            expect(cells.nth(1)).to_contain_text("kept: it is digit 0")
            cells.nth(2).get_by_text("Another label").click()
            cells.nth(2).get_by_label("Another label").fill("nought")
            cells.nth(2).get_by_role("button", name="Give").click()
            expect(page.locator("#waiting")).to_contain_text("2 changes")
            assert page.evaluate("window.still")
            page.reload()
            expect(page.locator("#kept-suspects")).to_contain_text("1 image kept")
            page.set_viewport_size({"width": 360, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert complaints == []
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
