"""Findings of a dataset version: every fault that was planted, hardly any that was not; and what a person says of them."""

import html
import json
import re
import threading
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from photographs import LOOKS, again, jpeg, photograph
from playwright.sync_api import expect, sync_playwright
from werkzeug.serving import make_server

from cli.main import cli
from shared import datasets, edits, findings
from shared.errors import Invalid, NotFound
from shared.settings import Settings
from shared.storage import Storage, image_key, version_name
from web import create_app
from worker.examiner import examine
from worker.examining import Collection
from worker.progress import Progress

CLEAN, EACH = 200, 20


class Scrape:
    """A dataset in the making, of pictures with addresses."""

    def __init__(self, folder, name="wonders"):
        self.settings = Settings(storage=str(folder / "store"), cache=folder / "cache")
        self.storage = Storage(self.settings.storage, self.settings.cache)
        self.name = name
        self.collection = Collection(self.storage, name, Progress(lambda _: None))

    def add(self, data, label="temple", **origin):
        """Offer a picture; its sha256."""
        facts = examine(data, self.storage, self.settings.max_image_bytes)
        self.collection.add({"label": label, "name": "a.jpg", "source": "list", **origin}, facts)
        return facts["sha256"]

    def publish(self, job="job1"):
        """The version's number."""
        return self.collection.publish(job, {"kind": "search"})["version"]

    def found(self, version=1):
        return findings.read(self.storage, self.name, version)


@pytest.fixture
def scrape(tmp_path):
    return Scrape(tmp_path)


def some(scrape, count=8, first=0, **origin):
    """Clean photographs in two classes; their sha256."""
    return [scrape.add(jpeg(photograph(first + n)), "temple" if n % 2 else "flower", **origin) for n in range(count)]


# -- what was planted -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """200 clean photographs and 20 of each fault, through the whole pipeline; `clean`, and `faults` by kind, are sha256."""
    scrape = Scrape(tmp_path_factory.mktemp("planted"))
    clean = some(scrape, CLEAN)
    faults = {}
    for k, (kind, spoil) in enumerate(LOOKS.items()):
        pictures = (spoil(photograph(CLEAN + EACH * k + n), n) for n in range(EACH))
        faults[kind] = [scrape.add(jpeg(picture), "temple") for picture in pictures]
    faults["near_duplicate"] = [scrape.add(again(photograph(n), n), "flower") for n in range(EACH)]
    faults["duplicate"] = [scrape.add(jpeg(photograph(n)), "flower") for n in range(EACH, 2 * EACH)]
    faults["unreadable"] = [scrape.add(jpeg(photograph(CLEAN + 500 + n))[: 2000 + 300 * n]) for n in range(EACH)]
    faults["placeholder"] = []
    for n in range(EACH):
        data = jpeg(photograph(CLEAN + 600 + n))
        faults["placeholder"] += {scrape.add(data, url=f"http://{host}.example/{n}.jpg") for host in "abc"}
    scrape.publish()
    return SimpleNamespace(scrape=scrape, clean=clean, faults=faults, found=scrape.found())


@pytest.mark.slow
@pytest.mark.parametrize("kind", findings.KINDS)
def test_nearly_all_of_each_planted_fault_are_found(planted, kind):
    if kind == "unreadable":
        found = {
            row["sha256"]
            for row in datasets.rows(planted.scrape.storage, "wonders", 1, status="dropped")
            if row["reason"] in findings.UNREADABLE
        }
        assert planted.found["dropped"]["unreadable"] == len(found)
    else:
        found = set(planted.found["images"][kind])
    missed = [sha256 for sha256 in planted.faults[kind] if sha256 not in found]
    assert len(planted.faults[kind]) == EACH
    assert len(missed) <= 0.05 * EACH


@pytest.mark.slow
def test_hardly_any_clean_photograph_is_flagged(planted):
    images = planted.found["images"]
    flagged = {sha256 for kind, found in images.items() if kind not in {"near_duplicate", "duplicate"} for sha256 in found}
    flagged |= set(images["near_duplicate"]) - set(planted.clean[:EACH]) | set(images["duplicate"]) - set(planted.clean[EACH : 2 * EACH])
    assert len(flagged & set(planted.clean)) <= 0.02 * CLEAN


@pytest.mark.slow
def test_a_fault_is_rarely_taken_for_another(planted):
    kinds = {sha256: kind for kind in LOOKS for sha256 in planted.faults[kind]}
    wrong = [
        (kinds[sha256], kind) for kind in LOOKS for sha256 in planted.found["images"][kind] if sha256 in kinds and kinds[sha256] != kind
    ]
    assert len(wrong) <= 0.05 * EACH * len(LOOKS), wrong


# -- what findings are ------------------------------------------------------------------------------------------------


def test_findings_are_kept_with_their_version_and_counted_in_its_info(scrape):
    some(scrape)
    dark = scrape.add(jpeg(LOOKS["dark"](photograph(90), 0)))
    scrape.add(b"<html>not found</html>")
    scrape.publish()
    assert scrape.storage.read_json("datasets/wonders/v0001/findings.json") == scrape.found()
    assert scrape.found()["images"] == findings.of_version(scrape.storage, "wonders", 1) == {"dark": [dark]}
    assert datasets.info(scrape.storage, "wonders")["findings"] == {"unreadable": 1, "dark": 1}


def test_the_worst_come_first(scrape):
    some(scrape)
    dark = [scrape.add(jpeg(photograph(90 + n).point(lambda level, n=n: level * (0.25 - n / 20)))) for n in range(3)]
    scrape.publish()
    assert scrape.found()["images"]["dark"] == dark[::-1]


def test_a_look_that_most_of_a_dataset_has_is_how_it_is_and_no_finding(scrape):
    for n in range(8):
        scrape.add(jpeg(LOOKS["grayscale"](photograph(n), n)), "temple" if n % 2 else "flower")
    some(scrape, 2, first=20)
    scrape.publish()
    assert (scrape.found()["usual"], scrape.found()["images"]) == ({"grayscale": 8}, {})


def test_bytes_that_were_offered_in_two_classes_come_before_those_offered_twice_in_one(scrape):
    images = some(scrape)
    scrape.add(jpeg(photograph(0)), "flower")
    scrape.add(jpeg(photograph(5)), "flower")
    scrape.publish()
    assert scrape.found()["images"]["duplicate"] == [images[5], images[0]]
    assert datasets.info(scrape.storage, "wonders")["findings"] == {"duplicate": 2}


def test_two_addresses_of_one_picture_are_a_copy_and_three_are_a_placeholder_which_later_versions_remember(scrape):
    some(scrape)
    for host in "ab":
        scrape.add(jpeg(photograph(50)), url=f"http://{host}.example/x.jpg")
    standing_in = {scrape.add(jpeg(photograph(51)), url=f"http://{host}.example/y.jpg") for host in "abc"}
    scrape.publish()
    assert scrape.found()["images"]["placeholder"] == list(standing_in)
    assert not standing_in & set(scrape.found()["images"]["duplicate"])
    scrape.collection = Collection(scrape.storage, "wonders", Progress(lambda _: None))
    scrape.add(jpeg(photograph(60)))
    scrape.publish("job2")
    assert scrape.found(2)["images"]["placeholder"] == list(standing_in)


def test_near_duplicates_across_classes_and_across_the_split_come_first(scrape):
    some(scrape, 40)
    for n in range(20):
        scrape.add(again(photograph(n), n), "temple" if n % 4 < 2 else "flower")
    scrape.publish()
    groups = scrape.found()["groups"]
    rows = {row["sha256"]: row for row in datasets.rows(scrape.storage, "wonders", 1)}
    for group in groups:
        assert len({rows[sha256]["label"] for sha256 in group["images"]}) == (2 if "classes" in group["across"] else 1)
        assert len(set(group["sides"])) == 1
    order = [("classes" in group["across"], "split" in group["across"]) for group in groups]
    assert order == sorted(order, reverse=True)
    assert (len(groups), len(set(order))) == (20, 4)


def test_an_image_whose_file_is_gone_is_a_finding_of_the_next_version(scrape):
    images = some(scrape)
    scrape.publish()
    rows = datasets.rows(scrape.storage, "wonders", 1)
    scrape.storage.delete(image_key(images[3], "jpg"))
    unmeasured = [{**row, "sharpness": None} for row in rows]
    with scrape.storage.writing("datasets/wonders/v0001/manifest.parquet") as f:
        f.write(datasets.manifest_bytes(unmeasured))
    scrape.collection = Collection(scrape.storage, "wonders", Progress(lambda _: None))
    scrape.add(jpeg(photograph(60)))
    scrape.publish("job2")
    assert scrape.found(2)["images"]["unreadable"] == [images[3]]


def test_a_version_of_an_earlier_darkroom_is_looked_at_when_somebody_asks(scrape):
    images = some(scrape)
    copy = scrape.add(again(photograph(0), 4))
    scrape.publish()
    folder = f"datasets/wonders/{version_name(1)}"
    with scrape.storage.open(f"{folder}/manifest.parquet") as f:
        table = pq.read_table(f).drop_columns(["brightness_p5", "brightness_p99", "sharpness", "entropy", "chroma", "thumb", "group"])
    with scrape.storage.writing(f"{folder}/manifest.parquet") as f:
        pq.write_table(table, f)
    scrape.storage.delete(f"{folder}/findings.json")
    findings._read.cache_clear()
    (group,) = scrape.found()["groups"]
    assert group["images"] == [images[0], copy]
    assert list(scrape.found()["images"]) == ["near_duplicate"]


def test_a_version_that_is_not_there_has_no_findings(scrape):
    with pytest.raises(NotFound, match="no version 1 of the dataset 'wonders'"):
        findings.read(scrape.storage, "wonders", 1)
    with pytest.raises(Invalid):
        findings.read(scrape.storage, "../models", 1)


# -- what a person lets stand -----------------------------------------------------------------------------------------


def test_a_finding_that_stands_is_remembered_by_kind_and_can_be_taken_back(scrape):
    one, two = some(scrape)[:2]
    scrape.publish()
    findings.accept(scrape.storage, "wonders", "dark", [one, two])
    findings.accept(scrape.storage, "wonders", "blurry", [one])
    findings.accept(scrape.storage, "wonders", "dark", [two], accepted=False)
    stands = findings.accepted(scrape.storage, "wonders")
    assert {kind: images for kind, images in stands.items() if images} == {"dark": {one}, "blurry": {one}}


def test_what_is_no_finding_or_no_dataset_cannot_stand(scrape):
    some(scrape)
    scrape.publish()
    with pytest.raises(Invalid, match="no finding 'ugly'"):
        findings.accept(scrape.storage, "wonders", "ugly", [])
    with pytest.raises(NotFound):
        findings.accept(scrape.storage, "nothing", "dark", [])
    assert not scrape.storage.list("datasets/wonders/accepted")


# -- the page, the API and the command line ---------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def site(settings):
    """The pages on the dataset `wonders`: eight clean photographs, two dark ones, near duplicates of three, a torn file and a copy."""
    scrape = Scrape.__new__(Scrape)
    scrape.settings, scrape.storage, scrape.name = settings, Storage(settings.storage, settings.cache), "wonders"
    scrape.collection = Collection(scrape.storage, "wonders", Progress(lambda _: None))
    clean = some(scrape)
    dark = [scrape.add(jpeg(LOOKS["dark"](photograph(90 + n), n)), HOSTILE if n else "temple", name=HOSTILE) for n in range(2)]
    scrape.add(jpeg(LOOKS["dark"](photograph(95), 3)), HOSTILE)
    near = [scrape.add(again(photograph(n), 0), "temple") for n in range(3)]
    scrape.add(jpeg(photograph(40))[:3000], "flower", name=HOSTILE)
    scrape.add(jpeg(photograph(5)), "flower", name="again.jpg")
    scrape.publish()
    app = create_app(settings)
    app.config["WTF_CSRF_ENABLED"] = False
    return SimpleNamespace(client=app.test_client(), storage=scrape.storage, scrape=scrape, clean=clean, dark=dark, near=near)


def page(site, **query):
    answer = site.client.get("/datasets/wonders/v/1/findings", query_string=query)
    assert answer.status_code == 200
    return answer.text


def send(site, htmx=False, **form):
    return site.client.post("/datasets/wonders/findings", data=form, headers={"HX-Request": "true"} if htmx else {})


def section(text, kind):
    return re.search(rf'<section id="{kind}".*?</section>', text, re.DOTALL)[0]


def removals(site):
    return {edit.sha256: edit.why for edit in edits.pending(site.storage, "wonders")}


def test_the_page_shows_each_kind_with_its_images_and_the_version_leads_to_it(site):
    text = page(site)
    assert re.findall(r'<section id="(\w+)"', text) == ["near_duplicate", "duplicate", "unreadable", "dark"]
    assert section(text, "near_duplicate").count('class="twin"') == 3
    assert "Would be on both sides of the split" in text or "In several classes" in text
    assert 'id="dark-' + site.dark[0][:16] in section(text, "dark")
    assert "also offered as flower" in section(text, "duplicate")
    assert "1 file was dropped" in section(text, "unreadable")
    assert HOSTILE not in text
    assert html.escape(HOSTILE) in text
    version = site.client.get("/datasets/wonders/v/1").text
    assert "near duplicates (6), exact duplicates (1), unreadable (1), dark (3)" in version
    assert "/datasets/wonders/v/1/findings" in version


def test_an_image_is_removed_kept_and_undone_without_a_script(site):
    one, two = site.dark
    assert send(site, kind="dark", action="remove", sha256=one).location == "/datasets/wonders/v/1/findings#dark"
    send(site, kind="dark", action="keep", sha256=two)
    assert removals(site) == {one: "finding: dark"}
    dark = section(page(site), "dark")
    assert "to be removed" in dark
    assert two[:16] not in dark
    assert "1 image kept as it is" in dark
    send(site, kind="dark", action="undo", sha256=one)
    send(site, kind="dark", action="undo", sha256=two)
    assert removals(site) == {}
    assert two[:16] in section(page(site), "dark")


def test_what_is_no_photo_of_anything_is_removed_for_that_reason(site):
    send(site, kind="dark", action="remove", sha256=site.dark[0], nothing="1")
    site.client.post("/datasets/wonders/edits", data={"sha256": site.clean[0], "version": 1, "action": "remove", "nothing": "1"})
    assert removals(site) == {site.dark[0]: "not a photo of anything", site.clean[0]: "not a photo of anything"}


def test_all_that_is_left_of_a_kind_is_removed_or_kept_and_undone_at_once(site):
    send(site, kind="dark", action="keep", sha256=site.dark[0])
    send(site, kind="dark", action="remove")
    assert site.dark[1] in removals(site)
    assert site.dark[0] not in removals(site)
    assert "Undo 2 removals" in section(page(site), "dark")
    send(site, kind="dark", action="undo")
    assert removals(site) == {}
    send(site, kind="dark", action="keep")
    assert "Nothing left to look at" in section(page(site), "dark")
    kept = section(page(site, kind="dark"), "dark").partition("<details")[2]
    assert len(re.findall('id="dark-', kept)) == 3


def test_undoing_all_removals_of_a_kind_leaves_those_of_another_cause(site):
    send(site, kind="dark", action="remove", sha256=site.dark[0], nothing="1")
    send(site, kind="dark", action="remove")
    send(site, kind="dark", action="undo")
    assert set(removals(site)) == {site.dark[0]}


def test_of_near_duplicates_the_largest_is_kept(site):
    send(site, kind="near_duplicate", action="remove", group=site.clean[0])
    assert set(removals(site)) == {site.near[0]}
    send(site, kind="near_duplicate", action="remove")
    assert set(removals(site)) == set(site.near)
    send(site, kind="near_duplicate", action="undo", group=site.clean[1])
    assert set(removals(site)) == {site.near[0], site.near[2]}
    send(site, kind="near_duplicate", group=site.clean[1], one=site.clean[1])
    assert site.clean[1] in removals(site)
    assert site.near[1] not in removals(site)


def test_a_group_that_may_stay_is_shown_again_when_a_picture_joins_it(site):
    send(site, kind="near_duplicate", action="keep", group=site.clean[0])
    assert section(page(site), "near_duplicate").count('class="twin"') == 2
    site.scrape.collection = Collection(site.storage, "wonders", Progress(lambda _: None))
    joined = site.scrape.add(again(photograph(0), 4), "temple")
    site.scrape.publish("job2")
    text = site.client.get("/datasets/wonders/v/2/findings").text
    assert section(text, "near_duplicate").count('class="twin"') == 3
    assert joined in text


def test_with_htmx_the_part_is_replaced_and_what_is_wrong_is_told_there(site):
    one = site.dark[0]
    answer = send(site, htmx=True, kind="dark", action="remove", sha256=one)
    assert (answer.status_code, answer.text.count("<li"), "<html" in answer.text) == (200, 1, False)
    assert re.search(r'to be removed.*id="waiting" hx-swap-oob="true">.*1 change<', answer.text, re.DOTALL)
    assert re.search(r'id="acts-dark" hx-swap-oob="true">.*Remove all 2<', answer.text, re.DOTALL)
    answer = send(site, htmx=True, kind="near_duplicate", action="remove", group=site.clean[0])
    assert answer.text.count('id="group-') == 1
    assert "Keep the largest of each, remove 2" in answer.text
    assert "to be removed" in answer.text
    answer = send(site, htmx=True, kind="dark", action="keep")
    assert answer.text.count('<section id="dark"') == 1
    answer = send(site, htmx=True, kind="dark", action="burn")
    assert (answer.status_code, "one of remove, keep and undo" in answer.text) == (200, True)


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"kind": "ugly", "action": "remove"}, 422),
        ({"kind": "dark", "action": "burn"}, 422),
        ({"kind": "dark", "action": "remove", "sha256": "../x"}, 422),
        ({"kind": "dark", "action": "remove", "sha256": "0" * 64}, 404),
        ({"kind": "near_duplicate", "action": "remove", "group": "0" * 64}, 422),
        ({"kind": "near_duplicate", "group": "0" * 64, "one": "0" * 64}, 422),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_does_nothing(site, form, status):
    assert send(site, **form).status_code == status
    assert removals(site) == {}


def test_an_older_version_shows_its_findings_and_leads_to_the_newest(site):
    site.scrape.collection = Collection(site.storage, "wonders", Progress(lambda _: None))
    site.scrape.add(jpeg(photograph(60)), "temple")
    site.scrape.publish("job2")
    text = page(site)
    assert "/datasets/wonders/v/2/findings" in text
    assert 'name="action"' not in section(text, "dark")
    assert site.client.get("/datasets/wonders/v/3/findings").status_code == 404
    assert site.client.get("/datasets/wonders/v/1/findings?kind=ugly").status_code == 422


def test_a_kind_has_pages_of_at_most_96_images_and_groups_stay_whole(site):
    report = site.storage.read_json("datasets/wonders/v0001/findings.json")
    rows = datasets.rows(site.storage, "wonders", 1)
    more = [{**rows[n % len(rows)], "sha256": f"{n:064x}"} for n in range(200)]
    with site.storage.writing("datasets/wonders/v0001/manifest.parquet") as f:
        f.write(datasets.manifest_bytes([*rows, *more]))
    names = [row["sha256"] for row in more]
    groups = [{"images": names[n : n + 40], "sides": ["train"] * 40, "across": []} for n in range(0, 200, 40)]
    site.storage.write_json("datasets/wonders/v0001/findings.json", {**report, "images": {"dark": names}, "groups": groups})
    findings._read.cache_clear()
    assert [page(site, kind="dark", page=n).count('id="dark-') for n in (1, 2, 3, 4)] == [96, 96, 8, 0]
    assert [len(re.findall('<li class="cell', page(site, kind="near_duplicate", page=n))) for n in (1, 2, 3)] == [80, 80, 40]
    assert "Show all 200" in section(page(site), "dark")


def test_the_api_tells_findings_and_lets_them_stand(site):
    base = "/api/v1/datasets/wonders"
    answer = site.client.get(f"{base}/versions/1/findings")
    assert answer.json["counts"] == {"near_duplicate": 6, "duplicate": 1, "unreadable": 1, "dark": 3}
    assert (len(answer.json["groups"]), answer.json["accepted"]) == (3, {})
    said = {"finding": "dark", "images": [site.dark[0]]}
    assert site.client.post(f"{base}/accepted", json=said).status_code == 204
    assert site.client.get(f"{base}/versions/1/findings").json["accepted"] == {"dark": [site.dark[0]]}
    assert site.client.post(f"{base}/accepted", json={**said, "accepted": False}).status_code == 204
    assert site.client.get(f"{base}/versions/1/findings").json["accepted"] == {}
    for wrong in ({**said, "finding": "ugly"}, {**said, "images": ["../x"]}, {**said, "images": []}, {"finding": "dark"}):
        assert site.client.post(f"{base}/accepted", json=wrong).status_code == 422
    assert site.client.get("/api/v1/datasets/nothing/versions/1/findings").status_code == 404


def test_the_command_line_tells_findings(site):
    server = make_server("127.0.0.1", 0, site.client.application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:

        def run(*args):
            return CliRunner().invoke(cli, ["--url", f"http://127.0.0.1:{server.port}", "dataset", "findings", *args])

        assert re.search(r"near duplicate\s+6\s+0\s+0", run("wonders").output)
        assert json.loads(run("wonders", "--version", "1", "--json").stdout)["counts"]["dark"] == 3
        assert run("wonders", "--version", "9").exit_code == run("nothing").exit_code == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser_findings_are_decided_in_place(site, settings, chromium):
    server = make_server("127.0.0.1", 0, create_app(settings), threaded=True)  # with its tokens
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.goto(f"http://127.0.0.1:{server.port}/datasets/wonders/v/1/findings")
            page.evaluate("window.still = true")
            cells = page.locator("#dark .suspect")
            cells.nth(0).get_by_label("not a photo of anything").check()
            cells.nth(0).get_by_role("button", name="Remove").click()
            expect(cells.nth(0)).to_contain_text("to be removed")
            expect(cells.nth(0).get_by_role("button", name="Undo")).to_be_focused()
            expect(page.locator("#waiting")).to_contain_text("1 change of wonders waits")
            expect(page.locator("#acts-dark")).to_contain_text("Remove all 2")
            cells.nth(1).get_by_role("button", name="Keep").click()
            expect(cells.nth(1)).to_contain_text("kept as it is")
            twins = page.locator("#near_duplicate .twin")
            twins.nth(0).get_by_role("button", name="Keep the largest").click()
            expect(twins.nth(0)).to_contain_text("to be removed")
            page.get_by_role("button", name="Keep the largest of each, remove 2").click()
            expect(page.locator("#waiting")).to_contain_text("4 changes")
            page.get_by_role("button", name="Undo 3 removals").click()
            expect(page.locator("#waiting")).to_contain_text("1 change of wonders waits")
            assert page.evaluate("window.still")
            assert list(removals(site).values()) == ["not a photo of anything"]
            page.set_viewport_size({"width": 360, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert complaints == []
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
