"""What a person decided: beside the result, one small file a row, and never in place of what the model said."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_results import row

from shared import review
from shared.errors import Invalid
from shared.storage import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "store"), tmp_path / "cache")


def test_the_model_is_right(storage):
    decision = review.decide(storage, "b", row(3, "cat", 0.4))
    assert (decision["action"], decision["model_label"], decision["given_label"]) == ("accept", "cat", "cat")
    assert storage.read_json("batches/b/review/3.json") == decision == review.decision(storage, "b", 3)


def test_another_label_stands_beside_that_of_the_model(storage):
    decision = review.decide(storage, "b", row(3, "cat", 0.4), "  tiger ")
    assert (decision["action"], decision["model_label"], decision["given_label"]) == ("relabel", "cat", "tiger")


def test_the_label_of_the_model_given_by_hand_is_an_acceptance(storage):
    assert review.decide(storage, "b", row(3, "cat"), "cat")["action"] == "accept"


@pytest.mark.parametrize("label", ["", "   ", "a\u202eb", "x" * 101])
def test_what_is_no_class_name_is_refused(storage, label):
    with pytest.raises(Invalid):
        review.decide(storage, "b", row(3), label)
    assert review.decided(storage, "b") == []


def test_a_row_without_a_label_cannot_be_reviewed(storage):
    with pytest.raises(Invalid, match="could not be read"):
        review.decide(storage, "b", row(3, error="empty"))


def test_the_last_word_counts_and_undo_takes_it_back(storage):
    review.decide(storage, "b", row(3), "dog")
    review.decide(storage, "b", row(3), "bird")
    assert [d["given_label"] for d in review.decisions(storage, "b")] == ["bird"]
    review.undo(storage, "b", 3)
    review.undo(storage, "b", 3)
    assert review.decision(storage, "b", 3) is None
    assert list(review.decisions(storage, "b")) == []


def test_many_people_decide_at_once(storage):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: review.decide(storage, "b", row(n % 40), "dog"), range(120)))
    assert review.decided(storage, "b") == list(range(40))
    assert {d["given_label"] for d in review.decisions(storage, "b")} == {"dog"}


def test_decisions_come_in_the_order_of_the_items_from_where_one_asks(storage):
    for n in (100, 9, 20):
        review.decide(storage, "b", row(n))
    assert [d["item_id"] for d in review.decisions(storage, "b", start=10)] == [20, 100]


def test_decisions_live_on_a_remote_storage_too(tmp_path):
    remote = Storage(f"memory://{tmp_path.name}", tmp_path / "cache")
    review.decide(remote, "b", row(3), "dog")
    assert [d["given_label"] for d in review.decisions(remote, "b")] == ["dog"]
    review.undo(remote, "b", 3)
    assert review.decided(remote, "b") == []


def test_the_export_has_both_labels_and_cells_that_no_spreadsheet_runs(storage):
    review.decide(storage, "b", row(0, "cat", 0.5, uri="=cmd|' /C calc'!A0"), "@SUM(A1)")
    (line,) = csv.DictReader(io.StringIO("".join(review.csv_lines(review.decisions(storage, "b"))), newline=""))
    assert tuple(line) == review.COLUMNS
    assert (line["uri"], line["model_label"], line["given_label"]) == ("'=cmd|' /C calc'!A0", "cat", "'@SUM(A1)")
    assert line["decided_at"].endswith("+00:00")
    (exported,) = [json.loads(text) for text in review.jsonl_lines(review.decisions(storage, "b"))]
    assert (exported["given_label"], exported["probability"]) == ("@SUM(A1)", 0.5)
    assert "locator" not in exported
