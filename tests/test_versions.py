"""Versions of a dataset: what changed between two, an earlier one again, deleting, and what the pages say of them."""

import html
import json
import re
import threading
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from playwright.sync_api import expect, sync_playwright
from test_importing import Room
from test_pages import make_model
from werkzeug.serving import make_server

from cli.main import cli
from shared import datasets, edits, models, rules
from shared.diff import changes, diff
from shared.errors import Conflict, Invalid, NotFound
from shared.jobs import State, new_id
from shared.orders import submit
from shared.specs import parse
from shared.storage import version_name
from web import create_app
from worker.examining import Collection
from worker.importing import import_dataset
from worker.progress import Progress

NAME = "digits"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def room(tmp_path):
    """The dataset `digits`: three classes of four pictures each, made by an import."""
    room = Room(tmp_path)
    room.put(*(f"digit {label}/{n}.jpg" for label in range(3) for n in range(4)))
    room.run(dataset=NAME)
    return room


def shown(storage, version=None):
    """{sha256: label} of what a version keeps, the newest if none is named."""
    return {row["sha256"]: row["label"] for row in datasets.rows(storage, NAME, version or datasets.latest(storage, NAME))}


def of(storage, label):
    """The images of a class of the newest version."""
    return [sha256 for sha256, given in shown(storage).items() if given == label]


def decide(storage, sha256, action="relabel", label=None):
    return edits.decide(storage, NAME, edits.parse_edit({"sha256": sha256, "action": action} | ({"label": label} if label else {})))


def freeze(room, job="job2"):
    return room.run({"kind": "edits"}, job=job, dataset=NAME)


def restore(room, version, job="restoring", **told):
    spec = parse("import", {"dataset": NAME, "source": {"kind": "restore", "version": version}, **told})
    return import_dataset(spec, job, room.storage, room.settings, Progress(lambda _: None))


def correct(room, job="job2"):
    """v2: of digit 0 one image is relabelled, another is removed; their hashes."""
    one, gone = of(room.storage, "digit 0")[:2]
    decide(room.storage, one, label="digit 1")
    decide(room.storage, gone, "remove")
    freeze(room, job)
    return one, gone


def hashes(table):
    return table["sha256"].to_pylist()


# -- what a version says of itself ------------------------------------------------------------------------------------


def test_a_version_keeps_note_and_author(room):
    correct(room)
    restore(room, 1, note=" first line\r\nsecond line ", author="Ada Lovelace")
    info = datasets.info(room.storage, NAME)
    assert (info["note"], info["author"]) == ("first line\nsecond line", "Ada Lovelace")
    assert (datasets.info(room.storage, NAME, 1)["note"], datasets.info(room.storage, NAME, 1)["author"]) == ("", "")


@pytest.mark.parametrize(
    "told", [{"note": "a\x00b"}, {"note": "a\u202eb"}, {"note": "x" * 501}, {"author": "a\nb"}, {"author": "x" * 101}, {"note": 7}]
)
@pytest.mark.parametrize(
    ("kind", "spec"),
    [("import", {"source": {"kind": "restore", "version": 1}}), ("scrape", {"classes": [{"name": "cat"}, {"name": "dog"}]})],
)
def test_a_note_with_control_characters_or_without_end_is_refused(kind, spec, told):
    with pytest.raises(Invalid, match=next(iter(told))):
        parse(kind, {"dataset": NAME, **spec, **told})


def test_images_are_stored_once_whatever_refers_to_them(room):
    room.run(dataset="other", job="job2")
    correct(room, "job3")
    restore(room, 1)
    files = [file.name for file in room.storage.files("images")]
    assert len(files) == len(set(files)) == 12
    assert shown(room.storage, 1) == {r["sha256"]: r["label"] for r in datasets.rows(room.storage, "other", 1)}


# -- what changed -----------------------------------------------------------------------------------------------------


def test_a_diff_names_what_was_added_removed_and_relabelled(room):
    one, gone = correct(room)
    room.put("digit 1/new.jpg")
    room.run(dataset=NAME, job="job3")
    found = diff(room.storage, NAME, 1, 3)
    (new,) = shown(room.storage, 3).keys() - shown(room.storage, 1).keys()
    assert (hashes(found.added), hashes(found.removed), hashes(found.relabelled)) == ([new], [gone], [one])
    assert found.relabelled.to_pylist()[0] == {**found.relabelled.to_pylist()[0], "before": "digit 0", "label": "digit 1", "ext": "jpg"}
    assert (found.unchanged, found.totals) == (10, {"added": 1, "removed": 1, "relabelled": 1})


def test_the_reason_of_a_removal_is_found_in_the_version_that_made_it(room):
    _, gone = correct(room)
    room.put("digit 1/new.jpg")
    room.run(dataset=NAME, job="job3")  # its manifest has other dropped rows, and the removed image once more
    removed = diff(room.storage, NAME, 1, 3).removed.to_pylist()
    assert [(row["sha256"], row["label"], row["reason"]) for row in removed] == [(gone, "digit 0", "removed")]
    assert "person removed" in removed[0]["detail"]


def test_a_diff_the_other_way_round_is_its_mirror(room):
    one, gone = correct(room)
    there, back = diff(room.storage, NAME, 1, 2), diff(room.storage, NAME, 2, 1)
    assert (hashes(back.added), hashes(back.removed), hashes(back.relabelled)) == (hashes(there.removed), hashes(there.added), [one])
    assert back.relabelled["before"].to_pylist() == ["digit 1"]
    assert hashes(back.added) == [gone]


def test_a_diff_counts_by_class_and_tells_of_one_class_alone(room):
    one, gone = correct(room)
    found = diff(room.storage, NAME, 1, 2)
    assert found.classes() == [
        {"label": "digit 0", "added": 0, "removed": 1, "came": 0, "left": 1},
        {"label": "digit 1", "added": 0, "removed": 0, "came": 1, "left": 0},
    ]
    assert (hashes(found.part("removed", "digit 0")), hashes(found.part("removed", "digit 1"))) == ([gone], [])
    assert hashes(found.part("relabelled", "digit 0")) == hashes(found.part("relabelled", "digit 1")) == [one]


def test_a_diff_counts_what_was_offered_and_not_kept(room):
    room.put("digit 1/new.jpg")
    room.put("digit 1/torn.jpg", data=b"no picture")
    room.run(dataset=NAME, job="job2")
    assert diff(room.storage, NAME, 1, 2).dropped == {"unsupported": 1}
    assert diff(room.storage, NAME, 2, 1).dropped == {}


def test_a_diff_with_what_is_not_there_is_a_sentence(room):
    with pytest.raises(NotFound, match="no version 7"):
        diff(room.storage, NAME, 1, 7)
    with pytest.raises(NotFound, match="no dataset 'nothing'"):
        diff(room.storage, "nothing", 1, 2)


def test_changes_of_versions_are_those_since_their_parents(room):
    correct(room)
    assert changes(room.storage, NAME, [2, 1]) == {2: {"added": 0, "removed": 1, "relabelled": 1}, 1: None}


# -- an earlier version again -----------------------------------------------------------------------------------------


def test_a_restored_version_has_the_hash_of_the_old_one_and_says_what_it_left_out(room):
    room.put("digit 1/new.jpg")
    room.run(dataset=NAME, job="job2")
    assert restore(room, 1) == {"dataset": NAME, "version": 3, "images": 12, "dropped": 1}
    old, info = datasets.info(room.storage, NAME, 1), datasets.info(room.storage, NAME)
    assert (info["hash"], info["classes"], info["parent"]) == (old["hash"], old["classes"], 2)
    assert (info["source"], info["dropped"]) == ({"kind": "restore", "version": 1}, {"left_out": 1})
    assert datasets.rows(room.storage, NAME, 3) == datasets.rows(room.storage, NAME, 1)
    (row,) = datasets.rows(room.storage, NAME, 3, status="dropped")
    assert (row["reason"], row["detail"]) == ("left_out", "v1, which was restored, does not have it.")


def test_a_job_whose_worker_died_restores_once(room):
    correct(room)
    assert restore(room, 1) == restore(room, 1)
    assert datasets.latest(room.storage, NAME) == 3


def test_an_image_that_was_removed_comes_back_and_nothing_removes_it_again(room):
    _, gone = correct(room)
    restore(room, 1)
    assert shown(room.storage, 3) == shown(room.storage, 1)
    assert edits.pending(room.storage, NAME) == edits.unmade(room.storage, NAME) == []
    assert edits.removed(room.storage, NAME) == set()
    room.put("digit 1/new.jpg")
    room.run(dataset=NAME, job="job4")
    decide(room.storage, of(room.storage, "digit 2")[0], label="digit 1")
    freeze(room, "job5")
    assert gone in shown(room.storage)


def test_a_removal_is_in_force_again_when_the_version_with_it_is_restored(room):
    _, gone = correct(room)
    restore(room, 1)
    restore(room, 2, job="again")
    assert shown(room.storage, 4) == shown(room.storage, 2)
    assert edits.removed(room.storage, NAME) == {gone}
    room.run(dataset=NAME, job="job5")  # the same folder as at first
    assert gone not in shown(room.storage)


def test_an_image_that_a_restored_version_left_out_may_be_imported_again(room):
    room.put("digit 1/new.jpg")
    room.run(dataset=NAME, job="job2")
    restore(room, 1)
    room.run(dataset=NAME, job="job4")
    assert shown(room.storage, 4) == shown(room.storage, 2)


def test_decisions_that_wait_go_on_waiting_and_fit_the_restored_version(room):
    correct(room)
    late = of(room.storage, "digit 2")[0]
    decide(room.storage, late, label="digit 1")
    restore(room, 1)
    assert [edit.sha256 for edit in edits.pending(room.storage, NAME)] == [late]
    freeze(room, "job4")
    assert shown(room.storage, 4) == {**shown(room.storage, 1), late: "digit 1"}


def test_what_was_published_meanwhile_is_left_out_and_listed(room):
    correct(room)
    restoring = Collection(room.storage, NAME, Progress(lambda _: None))
    restoring.restore(1)
    room.put("digit 1/new.jpg")
    room.run(dataset=NAME, job="job3")
    restoring.publish("job4", {"kind": "restore", "version": 1})
    info = datasets.info(room.storage, NAME)
    assert (info["version"], info["parent"], info["hash"]) == (4, 3, datasets.info(room.storage, NAME, 1)["hash"])
    assert [row["name"] for row in datasets.rows(room.storage, NAME, 4, status="dropped")] == ["digit 1/new.jpg"]


def test_an_import_that_began_before_a_restore_adds_to_the_restored_version(room):
    one, gone = correct(room)
    room.put("digit 1/new.jpg")
    room.run(dataset=NAME, job="job3")
    running = Collection(room.storage, NAME, Progress(lambda _: None))
    restore(room, 1)
    running.publish("job5", {"kind": "folder"})
    assert shown(room.storage, 5) == shown(room.storage, 1)
    assert {one, gone} <= shown(room.storage, 5).keys()


def test_what_cannot_be_restored_is_refused_when_it_is_ordered(room, settings):
    desk = SimpleNamespace(settings=room.settings, storage=room.storage, store=None, send=None)
    source = {"kind": "restore", "version": 1}
    with pytest.raises(Conflict, match="v1 is the newest version of digits"):
        submit(desk, "import", {"dataset": NAME, "source": source})
    with pytest.raises(NotFound, match="no version 9"):
        submit(desk, "import", {"dataset": NAME, "source": {**source, "version": 9}})
    with pytest.raises(NotFound, match="no dataset 'nothing'"):
        submit(desk, "import", {"dataset": "nothing", "source": source})
    correct(room)
    restore(room, 1)
    with pytest.raises(Conflict, match="v3, the newest version of digits, has the images and labels of v1 already"):
        submit(desk, "import", {"dataset": NAME, "source": source})


# -- deleting ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(room, settings):
    """The pages, on a storage with the dataset `digits` v1 and v2."""
    room.settings = settings.model_copy(update={"storage": room.settings.storage})
    one, gone = correct(room)
    app = create_app(room.settings)
    app.config["WTF_CSRF_ENABLED"] = False
    backend = app.extensions["darkroom"]
    return SimpleNamespace(client=app.test_client(), storage=room.storage, store=backend.store, room=room, one=one, gone=gone)


def make_model_on(site, version):
    info = {"model": "numbers", "created": 1.0, "job": "", "arch": "resnet18", "classes": ["a", "b"], "error_rate": 0.1, "spec": {}}
    info["dataset"] = {"name": NAME, "version": version, "hash": "0" * 64, "images": 12}
    folder = site.room.source.parent / "model"
    folder.mkdir(exist_ok=True)
    return site.storage.publish_version("models/numbers", folder, info)


def test_deleting_the_newest_version_lets_its_edits_wait_again_and_its_number_rest(site):
    assert site.client.delete(f"/api/v1/datasets/{NAME}/versions/2").status_code == 204
    assert site.client.get(f"/api/v1/datasets/{NAME}").json["versions"][0]["version"] == 1
    assert {edit.sha256 for edit in edits.pending(site.storage, NAME)} == {site.one, site.gone}
    assert freeze(site.room, "again")["version"] == 3


def test_a_deleted_dataset_is_gone_and_a_new_one_of_its_name_begins_without_its_edits(site):
    assert site.client.delete(f"/api/v1/datasets/{NAME}").status_code == 204
    assert site.client.get(f"/datasets/{NAME}").status_code == 404
    assert datasets.names(site.storage) == []
    site.room.run(dataset=NAME, job="anew")
    assert edits.log(site.storage, NAME) == []
    assert site.gone in shown(site.storage)


def refused(site, path):
    answer = site.client.delete(f"/api/v1/datasets/{NAME}{path}")
    assert answer.status_code == 409
    return answer.json["detail"]


def test_a_version_that_another_was_made_from_stays(site):
    assert refused(site, "/versions/1") == "digits v2 was made from v1, so v1 stays. Delete v2 first."


def test_a_version_that_a_model_was_trained_on_stays(site):
    make_model_on(site, 2)
    for path in ("", "/versions/2"):
        assert refused(site, path) == "The model numbers/v1 was trained on digits v2. Delete the model version first."
    models.delete(site.storage, "numbers", 1)
    assert site.client.delete(f"/api/v1/datasets/{NAME}").status_code == 204


def test_a_version_whose_images_a_batch_shows_stays(site):
    spec = {"model": "numbers/v1", "source": {"kind": "dataset", "dataset": NAME, "version": 2}}
    batch = site.store.create("classify", spec, "plan")
    site.store.cancel(batch)
    assert f"The batch {batch} has labelled the images of digits v2" in refused(site, "/versions/2")


def test_a_dataset_that_a_job_works_on_stays_until_it_has_ended(site):
    job = site.store.create("scrape", {"dataset": NAME, "classes": []}, "main")
    assert refused(site, "/versions/2") == f"digits is in use by the job {job}, which is queued. Wait for it, or cancel it."
    site.store.cancel(job)
    assert site.client.delete(f"/api/v1/datasets/{NAME}/versions/2").status_code == 204


def test_a_dataset_that_a_rule_watches_stays(site):
    rule = rules.Rule(id=new_id(), created=1.0, dataset=NAME, gained=5, model="numbers", start="model")
    site.storage.write_json(f"rules/{rule.id}/rule.json", rule.model_dump())
    assert f"The rule {rule.id} watches digits" in refused(site, "")


def test_deleting_what_is_not_there_is_not_found(site):
    assert site.client.delete("/api/v1/datasets/nothing").status_code == 404
    assert site.client.delete(f"/api/v1/datasets/{NAME}/versions/9").status_code == 404


# -- API and pages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def url(site):
    """The address of the pages, served by a thread."""
    server = make_server("127.0.0.1", 0, site.client.application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_api_pages_a_diff(site):
    answer = site.client.get(f"/api/v1/datasets/{NAME}/diff?from=1&to=2&limit=1").json
    assert (answer["from"], answer["to"], answer["next"]) == (1, 2, None)
    assert answer["total"] == {"added": 0, "removed": 1, "relabelled": 1}
    assert [row["sha256"] for row in answer["removed"]] == [site.gone]
    assert (answer["relabelled"][0]["before"], answer["relabelled"][0]["label"]) == ("digit 0", "digit 1")
    assert site.client.get(f"/api/v1/datasets/{NAME}/diff").json["total"] == answer["total"]
    assert site.client.get(f"/api/v1/datasets/{NAME}/diff?from=1&to=2&label=digit 2").json["total"]["removed"] == 0
    assert site.client.get(f"/api/v1/datasets/{NAME}/diff?from=x").status_code == 422
    assert site.client.get(f"/api/v1/datasets/{NAME}/diff?from=1&to=9").status_code == 404


def test_the_api_orders_a_restore(site):
    answer = site.client.post(f"/api/v1/datasets/{NAME}/import", json={"source": {"kind": "restore", "version": 1}, "note": "back"})
    assert (answer.status_code, answer.json["title"]) == (202, "Restore digits v1")
    refused = site.client.post(f"/api/v1/datasets/{NAME}/import", json={"source": {"kind": "restore", "version": 2}})
    assert (refused.status_code, "newest version" in refused.json["detail"]) == (409, True)


def test_the_page_of_versions_says_what_made_each_and_what_it_changed(site):
    make_model_on(site, 1)
    restore(site.room, 1, author=HOSTILE, note=f"{HOSTILE}\nsecond")
    text = site.client.get(f"/datasets/{NAME}/versions").text
    newest, second, first = re.findall(r"<tr><th>.*?</tr>", text.partition("<tbody>")[2], re.DOTALL)
    assert html.escape(HOSTILE) in newest
    assert HOSTILE not in text
    assert re.search(r"what v1 had.*\+1 &minus;0.*&#8644;1.*newest", newest, re.DOTALL)
    assert re.search(r"\+0 &minus;1.*Restore v2", second, re.DOTALL)
    assert re.search(r"numbers v1.*as the newest", first, re.DOTALL)


def test_the_page_of_versions_is_paged(site):
    for n in range(3, 24):
        site.storage.write_json(
            f"datasets/{NAME}/{version_name(n)}/info.json",
            {**datasets.info(site.storage, NAME, 2), "version": n, "parent": None, "edits": {}},
        )
    text = site.client.get(f"/datasets/{NAME}/versions").text
    assert text.partition("<tbody>")[2].count("<tr>") == 20
    assert "Page 1 of 2" in text
    assert site.client.get(f"/datasets/{NAME}/versions?page=2").text.partition("<tbody>")[2].count("<tr>") == 3


def test_the_button_orders_a_restore_and_leads_to_its_job(site):
    answer = site.client.post(f"/datasets/{NAME}/v/1/restore")
    job = site.store.page(1)[0]
    assert (answer.status_code, answer.location) == (303, f"/jobs/{job.id}")
    assert job.spec["source"] == {"kind": "restore", "version": 1}
    assert site.client.post(f"/datasets/{NAME}/v/2/restore").status_code == 409


def test_the_page_of_a_diff_has_a_sheet_for_each_part(site):
    text = site.client.get(f"/datasets/{NAME}/diff?from=1&to=2").text
    assert re.search(rf'<section id="removed">.*{site.gone}.*sub[^>]*>removed', text, re.DOTALL)
    assert re.search(rf'<section id="relabelled">.*{site.one}.*was digit 0', text, re.DOTALL)
    assert '<section id="added">' not in text
    assert f"/datasets/{NAME}/v/1/images/{site.gone}" in text
    assert f"/datasets/{NAME}/v/2/images/{site.one}" in text
    assert site.client.get(f"/datasets/{NAME}/v/1/images/{site.gone}").status_code == 200


def test_the_page_of_a_diff_shows_one_class_or_one_part(site):
    only = site.client.get(f"/datasets/{NAME}/diff?from=1&to=2&label=digit 1").text
    assert (site.one in only, site.gone in only) == (True, False)
    part = site.client.get(f"/datasets/{NAME}/diff?from=1&to=2&part=removed").text
    assert (site.one in part, site.gone in part) == (False, True)
    assert site.client.get(f"/datasets/{NAME}/diff?from=1&to=2&label=digit 9").status_code == 404
    assert site.client.get(f"/datasets/{NAME}/diff?from=1&to=2&part=all").status_code == 422
    assert site.client.get(f"/datasets/{NAME}/diff?from=2&to=2").status_code == 422
    assert "From v1 to v2" in site.client.get(f"/datasets/{NAME}/diff").text


def test_a_version_leads_to_what_changed_and_to_all_versions(site):
    text = html.unescape(site.client.get(f"/datasets/{NAME}/v/2").text)
    assert f"/datasets/{NAME}/diff?from=1&to=2" in text
    assert f"/datasets/{NAME}/versions" in text
    assert "What changed since" not in site.client.get(f"/datasets/{NAME}/v/1").text


def told(text):
    """A page without what marks the numbers of licences."""
    return re.sub(r'&nbsp;<span class="soft count">([\d,]+)</span>', r" \1", text)


def test_trainings_and_models_name_the_version_and_its_licences(site):
    info = {**datasets.info(site.storage, NAME, 2), "licences": {"CC BY 4.0": 2000, "CC0": 1068}}
    site.storage.write_json(f"datasets/{NAME}/v0002/info.json", info)
    job = site.store.create("train", {"dataset": NAME, "version": 2, "model": "numbers"}, "main")
    make_model(site.storage, [{"sha256": "0" * 64, "label": "hat"}, {"sha256": "1" * 64, "label": "hat"}])
    made = {**models.info(site.storage, "clothing", 1), "dataset": {"name": NAME, "version": 2, "hash": "0" * 64, "images": 11}}
    site.storage.write("models/clothing/v0001/info.json", json.dumps(made).encode())
    for page in (f"/jobs/{job}", "/models/clothing/v/1"):
        text = told(site.client.get(page).text)
        assert re.search(rf'/datasets/{NAME}/v/2">digits v2</a>: 11 images; CC BY 4.0 2,000, CC0 1,068', text), page
    text = told(site.client.get(f"/trainings/new?dataset={NAME}").text)
    assert "digits v2</a>; licence: CC BY 4.0 2,000, CC0 1,068" in text


def test_a_training_on_a_version_that_is_gone_says_so(site):
    job = site.store.create("train", {"dataset": "gone", "version": 3, "model": "numbers"}, "main")
    assert "gone v3, which is not there any more" in site.client.get(f"/jobs/{job}").text


def test_the_pages_fit_a_telephone_and_an_earlier_version_is_a_press_away(site, url, chromium):
    site.room.put(*(f"digit 1/{'long name ' * 9}{n}.jpg" for n in range(30)))
    spec = {"dataset": NAME, "source": {"kind": "folder", "path": str(site.room.source)}, "note": "n" * 500, "author": "a" * 100}
    import_dataset(parse("import", spec), "job3", site.storage, site.room.settings, Progress(lambda _: None))
    complaints = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for path in ("versions", "diff?from=1&to=3", "diff?from=1&to=3&part=added&label=digit 1"):
            page.goto(f"{url}/datasets/{NAME}/{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        page.goto(f"{url}/datasets/{NAME}/versions")
        page.get_by_role("button", name="Restore v1").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Restore digits v1")
        browser.close()
    assert complaints == []


# -- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(url):
    """The command line on the real web."""
    return lambda *args: CliRunner().invoke(cli, ["--url", url, "dataset", *map(str, args)])


def test_the_command_line_tells_versions_and_what_changed(site, run):
    told = run("versions", NAME)
    assert [line.split("\t")[0] for line in told.output.splitlines()] == ["version", "v2", "v1"]
    told = run("diff", NAME, 1, 2).output
    assert "From digits v1 to v2: 0 added, 1 removed, 1 relabelled; 10 unchanged." in told
    assert f"relabelled\t{site.one}\tdigit 0\tdigit 1" in told
    assert f"removed\t{site.gone}\tdigit 0\t\tA person removed it" in told
    assert json.loads(run("diff", NAME, 1, 2, "--json").output)["total"]["removed"] == 1
    assert run("diff", NAME, 1, 9).exit_code == 1


def test_the_command_line_restores_with_the_name_of_the_user(site, run, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    assert run("restore", NAME, 1, "--note", "back").exit_code == 0
    spec = site.store.page(1)[0].spec
    assert (spec["source"], spec["note"], spec["author"]) == ({"kind": "restore", "version": 1}, "back", "ada")
    assert "newest version" in run("restore", NAME, 2).output


def test_the_command_line_asks_before_it_deletes(site, run):
    assert run("delete", NAME, "--version", 2).exit_code == 1
    assert datasets.latest(site.storage, NAME) == 2
    assert "Deleted: digits v2" in run("delete", NAME, "--version", 2, "--yes").output
    assert datasets.latest(site.storage, NAME) == 1


def test_the_state_of_a_job_is_no_matter_once_it_has_ended(site):
    job = site.store.create("scrape", {"dataset": NAME, "classes": []}, "main")
    site.store.finish(site.store.claim(job, "main", "w"), State.DONE)
    assert site.client.delete(f"/api/v1/datasets/{NAME}/versions/2").status_code == 204
