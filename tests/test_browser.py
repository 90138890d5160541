"""The whole way in a real Chromium, as a person goes it: a dataset, a training, a batch, one image, a retrain."""

import csv
import io
import re
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import until
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from test_results import row
from werkzeug.serving import make_server

from shared import results, review
from shared.jobs import JobStore, connect
from shared.specs import parse
from shared.storage import Storage
from web import create_app

pytestmark = [pytest.mark.browser, pytest.mark.slow]
MINUTES = 180_000  # milliseconds a job may take here


@pytest.fixture(scope="module")
def browser(chromium):
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, system):
    context = browser.new_context(base_url=system, accept_downloads=True)
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" and "422" not in message.text else None)
    yield page
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def zipped(digits, tmp_path_factory):
    return shutil.make_archive(str(tmp_path_factory.mktemp("zip") / "digits"), "zip", digits)


def fill(page: Page, **values) -> None:
    for name, value in values.items():
        box = page.locator(f"[name={name}]:not([type=hidden])").first
        if box.evaluate("box => box.tagName == 'SELECT'"):
            box.select_option(value)
        else:
            box.fill(str(value))


def ends(page: Page, state: str) -> None:
    """Wait, as the page updates itself, until its job has ended in this state."""
    expect(page.locator("[data-state=done], [data-state=failed], [data-state=cancelled]").first).to_be_attached(timeout=MINUTES)
    expect(page.locator(f"[data-state={state}]").first).to_be_visible()


def wide_enough(page: Page) -> None:
    """Nothing is cut off or needs a sideways scroll on a phone."""
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1280, "height": 900})


def test_from_a_zip_to_labels_and_to_a_retrain(page, zipped, digits):
    page.goto("/")
    wide_enough(page)

    # a dataset from a zip
    page.goto("/datasets/new")
    page.get_by_label("A zip").check()
    fill(page, dataset="scans")
    page.set_input_files("[name=zip]", zipped)
    page.get_by_role("button", name="Make the dataset").click()
    ends(page, "done")
    page.goto("/datasets/scans")
    expect(page.get_by_text("digit 3").first).to_be_visible()
    thumbnail = page.locator("img[src*='/thumb']").first
    expect(thumbnail).to_be_visible()
    until(lambda: thumbnail.evaluate("image => image.complete && image.naturalWidth > 0"), 30)
    wide_enough(page)

    # a training, whose epochs arrive while it runs
    page.goto("/trainings/new?dataset=scans")
    fill(page, epochs=6, image_size=32)
    page.locator("details.more summary").click()
    page.select_option("[name=start]", "scratch")
    fill(page, augment="none", batch_size=16, base_lr=0.005)
    page.get_by_role("button", name="Train").click()
    expect(page.locator("table tbody tr:visible").first).to_be_visible(timeout=MINUTES)
    assert page.locator("svg").count() > 0
    ends(page, "done")
    page.goto("/models/scans/v/1")
    expect(page.locator("table.matrix")).to_be_visible()
    expect(page.locator("#top-losses img").first).to_be_visible()
    wide_enough(page)

    # one image
    page.set_input_files("[name=image]", str(next((digits / "digit 0").glob("*.png"))))
    page.get_by_role("button", name="Classify it").click()
    expect(page.locator("#answer")).to_contain_text(re.compile(r"digit \d"), timeout=MINUTES)
    page.get_by_role("button", name="Show where it looks").click()
    expect(page.locator("#answer #heat img")).to_be_visible(timeout=MINUTES)

    # where it looks in an image of the validation side, for the class it predicts and for another
    page.goto("/models/scans/v/1")
    page.locator("#classes .cell a").first.click()
    expect(page.locator("#heat img")).to_be_visible(timeout=MINUTES)
    page.get_by_label("For the class").select_option("digit 3")
    expect(page.locator("#heat figcaption")).to_contain_text("speaks for digit 3", timeout=MINUTES)
    wide_enough(page)

    # a batch of the same zip
    page.goto("/batches/new?model=scans/v1")
    page.get_by_label("A zip").check()
    page.set_input_files("[name=zip]", zipped)
    page.get_by_role("button", name="Classify", exact=True).click()
    ends(page, "done")
    expect(page.locator("img[src*='/items/']").first).to_be_visible()
    wide_enough(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(), newline="")))
    assert len(rows) == 120
    assert {row["error_code"] for row in rows} == {""}

    # a retrain, its form filled in with what made the model
    page.goto("/models/scans/v/1")
    page.get_by_role("link", name="Retrain").click()
    expect(page.locator("[name=epochs]")).to_have_value("6")
    expect(page.locator("[name=image_size]")).to_have_value("32")
    page.get_by_role("button", name="Train").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    ends(page, "cancelled")

    page.goto("/workers")
    expect(page.get_by_text("predict").first).to_be_visible()
    wide_enough(page)


def test_a_dataset_goes_out_and_comes_back_as_the_same_with_its_classes_renamed(page, zipped, tmp_path):
    def imported(name, way, **fields):
        page.goto("/datasets/new")
        page.get_by_label(way).check()
        files = fields.pop("zip", None)
        fill(page, dataset=name, **fields)
        if files:
            page.set_input_files("[name=zip]", str(files))
        wide_enough(page)
        page.get_by_role("button", name="Make the dataset", exact=True).last.click()
        ends(page, "done")
        page.goto(f"/datasets/{name}")

    def hash_of_version():
        return page.locator("dt:text-is('Hash') + dd").inner_text()

    imported("there", "A zip, tar or CSV", zip=zipped, renames="digit 0 = zero\ndigit 1 = zero")
    expect(page.get_by_text("digit 0 to zero, digit 1 to zero")).to_be_visible()
    made = hash_of_version()

    # out, as a Hugging Face image folder
    page.select_option("#exports [name=format]", "huggingface")
    page.get_by_role("button", name="Export").click()
    ends(page, "done")
    page.goto("/datasets/there")
    wide_enough(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="there-v1-huggingface.zip").click()
    download.value.save_as(tmp_path / "back.zip")

    # and in again
    imported("back", "A zip, tar or CSV", zip=tmp_path / "back.zip")
    assert hash_of_version() == made

    # another dataset, without a class
    page.goto("/datasets/new?way=dataset")
    expect(page.locator("[name=renames]")).to_be_visible()
    expect(page.locator("[name=zip]")).to_be_hidden()
    imported("part", "Another dataset", **{"from": "there/v1", "only": "zero\ndigit 2"})
    expect(page.get_by_text("there v1")).to_be_visible()
    assert hash_of_version() != made


def test_a_bad_zip_is_told_at_the_form_and_nothing_is_lost(page, tmp_path):
    bad = tmp_path / "bad.zip"
    bad.write_text("I am no zip")
    page.goto("/datasets/new")
    page.get_by_label("A zip").check()
    fill(page, dataset="bad")
    page.set_input_files("[name=zip]", str(bad))
    page.get_by_role("button", name="Make the dataset").click()
    expect(page.get_by_text("not a zip")).to_be_visible()
    expect(page.locator("[name=dataset]")).to_have_value("bad")


def test_a_bad_name_is_told_at_its_field(page):
    page.goto("/datasets/new")
    page.get_by_label("A folder on the server").check()
    fill(page, dataset="../<b>", path="/tmp")
    page.get_by_role("button", name="Make the dataset").click()
    expect(page.get_by_text("a name is lower-case letters")).to_be_visible()
    expect(page.locator("[name=dataset]")).to_have_value("../<b>")


def order(page: Page) -> list[str]:
    return page.locator("[name=sources]").evaluate_all("boxes => boxes.map((box) => box.value)")


def test_sources_are_put_in_order_by_keys_and_stay_so_when_the_form_is_refused(page):
    page.goto("/datasets/new")
    page.get_by_label("Flickr", exact=True).check()
    arrow = page.get_by_role("button", name="Ask Flickr earlier")
    arrow.focus()
    page.keyboard.press("Enter")
    assert order(page)[:3] == ["openverse", "flickr", "commons"]
    expect(arrow).to_be_focused()
    page.keyboard.press("Enter")
    assert order(page)[:3] == ["flickr", "openverse", "commons"]
    expect(page.get_by_label("Flickr", exact=True)).to_be_focused()  # there is no earlier place
    expect(page.locator("#said")).to_have_text("Flickr is number 1.")
    fill(page, dataset="wonders", classes="Petra")
    page.locator("[name=dataset]").press("Enter")  # orders, and presses no arrow
    expect(page.locator("#wrong-classes")).to_contain_text("at least 2")
    assert order(page)[:3] == ["flickr", "openverse", "commons"]
    expect(page.get_by_label("Flickr", exact=True)).to_be_checked()
    expect(page.locator("[name=classes]")).to_have_value("Petra")
    wide_enough(page)


def test_sources_are_put_in_order_without_a_script(browser, system):
    context = browser.new_context(base_url=system, java_script_enabled=False)
    page = context.new_page()
    page.goto("/datasets/new")
    page.get_by_label("Brave", exact=True).check()
    page.locator("[name=classes]").fill("Petra = Petra Jordan ruins")
    page.get_by_role("button", name="Ask Brave earlier").click()
    expect(page.locator(".sources li:nth-child(3) label")).to_have_text("Brave")
    expect(page.get_by_label("Brave", exact=True)).to_be_checked()
    expect(page.locator("[name=classes]")).to_have_value("Petra = Petra Jordan ruins")
    context.close()


@pytest.fixture
def reviewing(browser, settings):
    """A page on a web of its own, with a batch of 24 pictures that nobody is sure of; and its decisions as they are on storage."""
    storage, store = Storage(settings.storage, settings.cache), JobStore(connect(settings.redis_url))
    folder = Path(settings.storage).with_name("pictures")
    folder.mkdir()
    spec = parse("classify", {"model": "pets/v1", "source": {"kind": "folder", "path": str(folder)}})
    batch = store.create("classify", spec.model_dump(mode="json"), "plan")
    rows = []
    for n in range(24):
        Image.new("RGB", (300, 200), (n * 10, 40, 90)).save(folder / f"{n}.png")
        rows.append(row(n, "cat", 0.3 + n / 100, locator=f"file:{folder}/{n}.png"))
    table = pa.Table.from_pylist(rows, schema=results.ROWS)
    storage.write(results.shard_key(batch, results.shard_name(0, 24)), results.shard_bytes(table))
    server = make_server("127.0.0.1", 0, create_app(settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = browser.new_context(base_url=f"http://127.0.0.1:{server.server_port}").new_page()
    page.goto(f"/batches/{batch}/review")
    yield page, lambda: {d["item_id"]: d["given_label"] for d in review.decisions(storage, batch)}
    page.context.close()
    server.shutdown()
    thread.join()


def shown(page: Page) -> int:
    return int(page.locator(".view:not([hidden])").get_attribute("data-item"))


def test_a_batch_is_reviewed_with_a_key_a_picture(reviewing):
    page, decisions = reviewing
    for key, item in (("Enter", 0), ("2", 1), ("a", 2), ("ArrowRight", 3), ("s", 4)):
        assert shown(page) == item
        page.keyboard.press(key)
    page.keyboard.press("l")
    page.keyboard.type("axolotl")
    page.keyboard.press("Enter")
    assert shown(page) == 6
    loaded = "views => views.every(view => { const image = view.querySelector('img'); return image.complete && image.naturalWidth > 0; })"
    until(lambda: page.locator(".view").evaluate_all(loaded), 30)  # those that come next, too
    until(lambda: decisions() == {0: "cat", 1: "dog", 2: "cat", 5: "axolotl"}, 30)
    expect(page.locator("#reviewed")).to_have_text("4")
    page.keyboard.press("u")
    assert shown(page) == 5
    until(lambda: decisions() == {0: "cat", 1: "dog", 2: "cat"}, 30)
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert shown(page) == 1
    expect(page.locator(".view:not([hidden]) .verdict")).to_have_text("relabelled as dog")
    for _ in range(24):  # more than the page held at first
        until(lambda: page.locator(".view:not([hidden]) + .view").count() or shown(page) == 23, 30)
        page.keyboard.press("Enter")
        if shown(page) == 23:
            break
    until(lambda: len(decisions()) == 23, 30)
    page.reload()
    assert shown(page) == 23
    wide_enough(page)
    page.keyboard.press("Enter")
    expect(page.get_by_text("All 24 are reviewed.")).to_be_visible()
    assert decisions() == dict.fromkeys(range(24), "cat")


def test_a_decision_that_is_not_kept_is_told_and_its_picture_comes_back(reviewing):
    page, decisions = reviewing
    page.route("**/api/v1/batches/*/review/*", lambda route: route.abort())
    page.keyboard.press("Enter")
    expect(page.locator("#review-wrong")).to_contain_text("Not kept")
    assert shown(page) == 0
    page.unroute("**/api/v1/batches/*/review/*")
    page.keyboard.press("Enter")
    until(lambda: decisions() == {0: "cat"}, 30)
    expect(page.locator("#review-wrong")).to_be_hidden()


def test_pictures_to_review_stand_in_lines_with_the_others(reviewing):
    page, _ = reviewing
    page.goto(page.url.split("/review")[0])
    expect(page.locator(".cell .sub.review")).to_have_count(24)
    tall = "cells => cells.map(cell => cell.getBoundingClientRect().height / cell.querySelector('a').getBoundingClientRect().height)"
    assert max(page.locator(".cell").evaluate_all(tall)) < 2  # a square, and lines of text below it
    wide_enough(page)


def test_review_works_without_a_script(browser, reviewing):
    page, decisions = reviewing
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(page.url)
    plain.get_by_role("button", name="Accept cat").click()
    plain.get_by_role("button", name="2 dog").click()
    assert decisions() == {0: "cat", 1: "dog"}
    plain.get_by_role("button", name="Undo the last").click()
    assert decisions() == {0: "cat"}
    plain.context.close()
