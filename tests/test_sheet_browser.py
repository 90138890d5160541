"""The review of a dataset in a real Chromium, by keys, over 5,000 pictures: what is on the page, what the log then holds, and the version it makes."""

import hashlib
import io
import re
import threading
from collections import Counter
from itertools import groupby, islice
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import until
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from sklearn.datasets import load_digits
from test_sheet import make_model, make_version
from werkzeug.serving import make_server

from shared import datasets, edits
from shared.jobs import JobStore, State, connect
from shared.specs import ImportSpec
from shared.storage import Storage, image_key
from web import create_app
from worker.importing import import_dataset
from worker.progress import Progress

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAME = "pets"
ON_PAGE = 400  # cells, whatever the dataset has


def scans():
    """(digit, PNG) of distinct handwritten digits, upright and turned."""
    source = load_digits()
    for turns in range(4):
        for pixels, digit in zip(source.images, source.target, strict=True):
            out = io.BytesIO()
            Image.fromarray(np.rot90((pixels * 15).astype(np.uint8), turns).copy()).save(out, "PNG")
            yield int(digit), out.getvalue()


def publish(storage, count, report=None):
    """A version of so many scans, ten classes in no order, with this report of findings; its manifest rows."""
    rows, seen = [], set()
    for digit, data in scans():
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 in seen or len(rows) == count:
            continue
        seen.add(sha256)
        storage.write(image_key(sha256, "png"), data, durable=False)
        n = len(rows)
        where = {
            "source": ("commons", "openverse")[n % 2],
            "licence": ("by", "cc0", "by-sa")[n % 3],
            "creator": f"Ada {n}",
            "name": f"{n}.png",
        }
        size = {"width": 8, "height": 8, "format": "PNG", "bytes": len(data)}
        rows.append(datasets.blank_row(sha256=sha256, ext="png", label=f"digit {digit}", status="kept", **where, **size))
    assert len(rows) == count
    make_version(storage, rows, report=report)
    return rows


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_review(browser, settings):
    """Opens the review of a dataset of so many images on a web of its own; at the end no script may have complained."""
    storage = Storage(settings.storage, settings.cache)
    server = make_server("127.0.0.1", 0, create_app(settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    page = browser.new_context(base_url=f"http://127.0.0.1:{server.port}", viewport={"width": 1280, "height": 900}).new_page()
    complaints, allowed = [], ["ERR_FAILED", "status of 4"]
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: m.type == "error" and not any(text in m.text for text in allowed) and complaints.append(m.text))

    def start(count, query="", report=None):
        rows = publish(storage, count, report)
        page.goto(f"/datasets/{NAME}/review{query}")
        expect(page.locator(".shot.here")).to_be_visible()
        return SimpleNamespace(page=page, storage=storage, settings=settings, rows=rows)

    yield start
    page.context.close()
    server.shutdown()
    thread.join()
    server.server_close()
    assert complaints == []


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def pick(page, field, value):
    page.locator(f"#choices [name={field}]").select_option(value)


def saved(page):
    expect(page.locator("#kept-state")).to_have_text("✓ saved")


def log(room):
    """The entries as (action, label, rows), an undo as ("undo", None, the entry's place in the log)."""
    place = {row["sha256"]: n for n, row in enumerate(room.rows)}
    entries = [list(entry) for _, entry in groupby(edits.log(room.storage, NAME), key=lambda edit: edit.id)]
    ids = [entry[0].id for entry in entries]
    return [
        ("undo", None, ids.index(entry[0].undoes))
        if entry[0].undoes
        else (entry[0].action, entry[0].label, [place[e.sha256] for e in entry])
        for entry in entries
    ]


def here(room):
    """The row of the cursor, as the page and a screen reader have it."""
    marked, active = room.page.locator(".shot.here").get_attribute("id"), room.page.locator("#grid").get_attribute("aria-activedescendant")
    assert marked == active
    return int(marked.removeprefix("shot-"))


def shot(room, row):
    return room.page.locator(f"#shot-{row}")


def columns(room):
    return int(room.page.locator("#grid").get_attribute("aria-colcount"))


def test_five_thousand_images_are_cleared_by_keys_and_become_a_version(open_review):
    room = open_review(5000)
    page = room.page
    expect(page.locator("#shown")).to_have_text("5,000 images")
    picture = shot(room, 0).locator("img")
    until(lambda: picture.evaluate("image => image.complete && image.naturalWidth > 0"), 30)
    wide = columns(room)

    # a key a picture, and on to the next
    press(page, "ArrowRight", "x", "4", "k")
    assert here(room) == 4
    expect(shot(room, 1)).to_have_attribute("data-state", "dropped")
    expect(shot(room, 2)).to_contain_text("→ digit 3")
    expect(shot(room, 3)).to_contain_text(f"✓ {room.rows[3]['label']}")
    press(page, "u", "u")
    assert here(room) == 2
    expect(shot(room, 2)).to_contain_text(room.rows[2]["label"])
    saved(page)
    done = [("remove", None, [1]), ("relabel", "digit 3", [2]), ("keep", None, [3]), ("undo", None, 2), ("undo", None, 1)]
    assert log(room) == done

    # a range: down two lines, one action, one undo, and again
    press(page, "Home", "Shift+ArrowDown", "Shift+ArrowDown")
    many = list(range(2 * wide + 1))
    expect(page.locator("#here")).to_have_text(f"{len(many)} selected")
    press(page, "9")
    expect(shot(room, 0)).to_contain_text("→ digit 8")
    press(page, "u")
    expect(shot(room, 0)).to_contain_text(room.rows[0]["label"])
    expect(shot(room, 1)).to_have_attribute("data-state", "dropped")
    press(page, "Home", "Shift+ArrowRight", "x")
    saved(page)
    changed = [n for n in many if room.rows[n]["label"] != "digit 8"]
    entries = log(room)[len(done) :]
    assert sorted(entries[0][2]) == many
    assert Counter(edit.action for edit in edits.log(room.storage, NAME) if edit.label == "digit 8") == {"relabel": len(changed)}
    assert entries[1:] == [("undo", None, len(done)), ("remove", None, [0])]  # the other one was dropped already

    # to the end and back, with few cells on the page wherever one is
    for keys in (["End"], ["PageUp"] * 3, ["Home"], ["PageDown"] * 4):
        press(page, *keys)
        assert page.locator(".shot").count() < ON_PAGE
        expect(page.locator(".shot.here")).to_be_in_viewport()
    press(page, "End")
    assert here(room) == 4999

    # all that a filter shows
    pick(page, "label", "digit 7")
    sevens = [n for n, row in enumerate(room.rows) if row["label"] == "digit 7"]
    expect(page.locator("#shown")).to_have_text(f"{len(sevens)} of 5,000 images")
    expect(page).to_have_url(re.compile(r"label=digit\+7"))
    pick(page, "licence", "cc0")
    free = [n for n in sevens if n % 3 == 1]
    expect(page.locator("#shown")).to_have_text(f"{len(free)} of 5,000 images")
    expect(page.locator("[name=source] option", has_text="commons")).to_have_text(f"commons ({sum(n % 2 == 0 for n in free)})")
    page.locator("#grid").focus()
    press(page, "a", "x")
    saved(page)
    assert log(room)[-1] == ("remove", None, free)
    page.go_back()
    expect(page.locator("#shown")).to_have_text(f"{len(sevens)} of 5,000 images")
    page.go_back()
    expect(page.locator("#shown")).to_have_text("5,000 images")

    # frozen: exactly that is the version
    expect(page.locator("#freeze")).to_contain_text(f"0 relabelled, {len(free) + 2} dropped")
    page.get_by_label("Note on the version").fill("sevens that are free")
    page.get_by_role("button", name="Make version 2").click()
    expect(page).to_have_url(re.compile("/jobs/"))
    store = JobStore(connect(room.settings.redis_url))
    job = store.get(page.url.rsplit("/", 1)[-1])
    assert job.spec["note"] == "sevens that are free"
    claim = store.claim(job.id, "main", "tester")
    spec = ImportSpec.model_validate(job.spec)
    store.finish(claim, State.DONE, "", import_dataset(spec, job.id, room.storage, room.settings, Progress(lambda _: None)))
    gone = {0, 1, *free}
    expected = {row["sha256"]: row["label"] for n, row in enumerate(room.rows) if n not in gone}
    assert {row["sha256"]: row["label"] for row in datasets.rows(room.storage, NAME, 2)} == expected
    page.goto(f"/datasets/{NAME}/review")
    expect(page.locator("#shown")).to_have_text(f"{len(expected):,} images")
    expect(page.locator("#freeze")).to_contain_text("0 relabelled, 0 dropped wait")
    expect(page.get_by_role("button", name="Make version 3")).to_be_disabled()


def test_a_look_closer_decides_walks_and_has_an_address(open_review):
    room = open_review(300, "?label=digit+3")
    page = room.page
    threes = [n for n, row in enumerate(room.rows) if row["label"] == "digit 3"]
    press(page, "ArrowRight", "Enter")
    closer = page.locator("#closer")
    expect(closer).to_contain_text(f"2 of {len(threes)}")
    expect(closer).to_contain_text(f"Ada {threes[1]}")
    expect(closer).to_contain_text(room.rows[threes[1]]["sha256"])
    until(lambda: closer.locator("img").evaluate("image => image.complete && image.naturalWidth === 8"), 30)
    press(page, "ArrowRight", "x")
    expect(closer).to_contain_text(f"Ada {threes[3]}")
    expect(page).to_have_url(re.compile(f"image={room.rows[threes[3]]['sha256'][:16]}"))
    page.reload()
    expect(closer).to_contain_text(f"Ada {threes[3]}")
    press(page, "ArrowLeft")
    expect(closer).to_contain_text("digit 3, dropped")
    press(page, "Escape")
    expect(closer).to_be_hidden()
    assert here(room) == threes[2]
    press(page, "Enter")
    page.go_back()
    expect(closer).to_be_hidden()
    press(page, "u")  # also what was done before the page was loaded again
    expect(shot(room, threes[2])).to_have_attribute("data-state", "undecided")
    saved(page)
    assert log(room) == [("remove", None, [threes[2]]), ("undo", None, 0)]


def test_a_class_is_found_by_typing_or_made(open_review):
    room = open_review(60)
    page = room.page
    press(page, "/")
    page.keyboard.type("it 7")
    expect(page.locator("#class-list [aria-selected=true]")).to_have_text("digit 7")
    press(page, "Enter", "l")
    page.keyboard.type("smudge x")  # its letters decide nothing
    press(page, "Enter")
    expect(shot(room, 1)).to_contain_text("→ smudge x")
    pick(page, "label", "smudge x")
    expect(page.locator("#shown")).to_have_text("1 of 60 images")
    saved(page)
    assert log(room) == [("relabel", "digit 7", [0]), ("relabel", "smudge x", [1])]


def test_mouse_and_touch_select_and_decide_as_keys_do(open_review):
    room = open_review(60)
    page = room.page
    shot(room, 3).click()
    shot(room, 6).click(modifiers=["Shift"])
    shot(room, 4).click(modifiers=["ControlOrMeta"])
    expect(page.locator("#here")).to_have_text("3 selected")
    page.get_by_role("button", name="Drop").click()
    page.get_by_role("button", name="Select").click()
    shot(room, 10).click()
    shot(room, 12).click()
    page.locator("#digits button").nth(5).click()
    shot(room, 20).dblclick()
    page.get_by_role("button", name="Undo").click()
    saved(page)
    assert [entry[0::2] for entry in log(room)] == [("remove", [3, 5, 6]), ("relabel", [10, 12]), ("undo", 1)]


def test_keep_spares_what_was_decided_and_all_means_what_still_fits(open_review):
    room = open_review(60, "?state=undecided")
    page = room.page
    press(page, "x", "ArrowRight", "l")
    page.keyboard.type("other")
    press(page, "Enter", "a")
    expect(page.locator("#here")).to_have_text("58 selected")
    press(page, "k")
    saved(page)
    assert [entry[:2] for entry in log(room)] == [("remove", None), ("relabel", "other"), ("keep", None)]
    assert sorted(log(room)[2][2]) == [1, *range(3, 60)]
    expect(page.locator("#shown")).to_have_text("60 images")  # decided, and shown until one asks anew
    page.reload()
    expect(page.get_by_text("No image fits these filters")).to_be_visible()
    page.get_by_role("button", name="Show all images").click()
    expect(page.locator("#shown")).to_have_text("60 images")
    press(page, "Home", "Shift+End", "k")
    expect(page.locator("#said")).to_have_text("58 images kept; 2 images decided before stay as they are")
    assert len(log(room)) == 3


def test_what_a_model_labels_otherwise_is_shown_the_surest_first_and_agreed_to(open_review):
    room = open_review(60)
    page = room.page
    named = [row["label"] for row in room.rows]
    others = ["digit 0" if label != "digit 0" else "digit 1" for label in named]
    said = [(room.rows[n]["sha256"], (named, others)[n % 2][n], 0.5 + n / 200) for n in range(20)]
    make_model(room.storage, NAME, "clothing", said)
    page.reload()
    page.get_by_label("Labelled otherwise by").select_option("clothing/v1")
    expect(page.locator("#shown")).to_have_text("10 of 60 images")
    page.locator("#grid").focus()
    assert here(room) == 19
    expect(shot(room, 19)).to_contain_text(f"says {others[19]}")
    press(page, "m")
    assert here(room) == 17
    saved(page)
    assert log(room) == [("relabel", others[19], [19])]


def test_findings_decisions_and_order_are_filters_that_say_how_many_they_show(open_review):
    odd = {"blurry": [5, 3], "near_duplicate": [5, 8]}
    hashes = [hashlib.sha256(data).hexdigest() for _, data in islice(scans(), 60)]
    images = {code: [hashes[n] for n in found] for code, found in odd.items()}
    room = open_review(60, report={"images": images, "groups": [], "dropped": {}, "usual": {}})
    page = room.page
    choices = page.locator("[name=finding] option")
    expect(choices).to_have_text(["any or none (60)", "blurry (2)", "near duplicate (2)"])
    pick(page, "finding", "near_duplicate")
    page.locator("#grid").focus()
    assert here(room) == 5
    press(page, "Enter")
    expect(page.locator("#closer")).to_contain_text("Found: blurry, near duplicate.")
    press(page, "Escape", "x")
    expect(page.locator("[name=state] option", has_text="dropped")).to_have_text("dropped (1)")
    expect(page.locator("[name=state] option", has_text=re.compile("^decided"))).to_have_text("decided (1)")
    pick(page, "state", "decided")
    expect(page.locator("#shown")).to_have_text("1 of 60 images")
    page.get_by_role("button", name="Show all", exact=True).click()
    pick(page, "sort", "class")
    page.locator("#grid").focus()
    press(page, "Home")
    by_class = sorted(range(60), key=lambda n: (room.rows[n]["label"], n))
    for row in by_class[:8]:
        assert here(room) == row
        press(page, "ArrowRight")


def test_what_the_server_does_not_get_is_said_and_sent_later_in_order(open_review):
    room = open_review(60)
    page = room.page
    page.route("**/api/v1/datasets/*/edits", lambda route: route.abort())
    press(page, "x", "k", "x")
    expect(page.locator("#stuck")).to_contain_text("Darkroom does not answer")
    expect(page.locator("#kept-state")).to_have_text("✕ not saved")
    assert log(room) == []
    page.unroute("**/api/v1/datasets/*/edits")
    page.get_by_role("button", name="Try now").click()
    saved(page)
    expect(page.locator("#stuck")).to_be_hidden()
    assert log(room) == [("remove", None, [0]), ("keep", None, [1]), ("remove", None, [2])]


def test_a_decision_outlives_its_tab(open_review):
    room = open_review(60)
    press(room.page, "x")
    room.page.close()
    until(lambda: log(room) == [("remove", None, [0])], 30)


def test_a_tab_asks_before_it_closes_on_what_is_not_saved(open_review):
    room = open_review(60)
    page = room.page
    page.route("**/api/v1/datasets/*/edits", lambda route: route.abort())
    press(page, "x")
    expect(page.locator("#stuck")).to_contain_text("Leave this page open")
    with page.expect_event("dialog") as asked:
        page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.accept()


def test_what_the_server_refuses_is_taken_back_and_said(open_review):
    room = open_review(60)
    page = room.page
    press(page, "x", "l")
    page.keyboard.type("seven")
    press(page, "Enter")
    saved(page)
    with_case = {"sha256": room.rows[5]["sha256"], "action": "relabel", "label": "Owl"}
    edits.decide(room.storage, NAME, edits.parse_edit(with_case))  # somebody else, meanwhile
    press(page, "l")
    page.keyboard.type("owl")
    press(page, "Enter")
    expect(page.locator("#stuck")).to_contain_text("Not saved: The classes 'Owl' and 'owl' differ")
    expect(shot(room, 2)).to_have_attribute("data-state", "undecided")
    expect(shot(room, 5)).to_contain_text("→ Owl")
    assert len(log(room)) == 3
    press(page, "k")
    expect(page.locator("#stuck")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_needs_a_sideways_scroll(open_review, scheme):
    room = open_review(60)
    page = room.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.locator(".shot.here")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Filters").click()
    expect(page.locator("[name=label]")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#grid").focus()
    press(page, "Enter")
    expect(page.locator("#closer")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_a_script_the_page_says_where_to_go(open_review, browser):
    room = open_review(60)
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(room.page.url)
    expect(plain.get_by_text("This page needs JavaScript")).to_be_visible()
    expect(plain.locator("#review")).to_be_hidden()
    plain.context.close()
