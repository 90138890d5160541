"""Findings of a dataset version: every fault that was planted, hardly any that was not; and what a person says of them."""

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from photographs import LOOKS, again, jpeg, photograph

from shared import datasets, findings
from shared.errors import Invalid, NotFound
from shared.settings import Settings
from shared.storage import Storage, version_name
from worker.examining import Collection, examine
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
        facts = examine(data, self.storage, self.settings)
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
    scrape.storage.delete(datasets.image_key(images[3], "jpg"))
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
