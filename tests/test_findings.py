"""Findings of a dataset version: every fault that was planted, hardly any that was not; and what a person says of them."""

import json
from types import SimpleNamespace

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
