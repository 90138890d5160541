"""The ledger rebuilt from storage, without workers: what comes back, and what is left to do."""

import pyarrow as pa
import pytest

from shared import portions, results
from shared.items import ITEMS
from shared.jobs import JobStore, State, connect, keep_record
from shared.recovery import recover
from shared.specs import parse
from shared.storage import Storage


@pytest.fixture
def store(settings):
    return JobStore(connect(settings.redis_url), lease_seconds=60)


@pytest.fixture
def storage(settings):
    return Storage(settings.storage, settings.cache)


def order(store, storage, kind="train", unit="main"):
    """An order, as the web leaves it."""
    source = {"model": "digits/v1", "source": {"kind": "folder", "path": "/pictures"}, "shard_size": 4}
    spec = parse(kind, source if kind == "classify" else {"dataset": "digits", "model": "digits"})
    job = store.create(kind, spec.model_dump(mode="json"), unit)
    keep_record(store, storage, job)
    return job


def forget(store):
    """Redis loses all it has."""
    store.redis.flushall()


def list_items(storage, job, first, last, over):
    """A portion of the items of a batch."""
    rows = [{"item_id": n, "uri": f"{n}.png", "locator": f"file:/pictures/{n}.png"} for n in range(first, last)]
    portions.write(storage, job, first, pa.Table.from_pylist(rows, ITEMS), 4, f"{last - 1}.png", over)


def label(storage, job, first, last):
    """The file of a shard."""
    row = {"uri": "a.png", "label": "cat", "probability": 0.9, "decision": "accept", "error_code": "", "error": ""}
    rows = pa.Table.from_pylist([{**row, "item_id": n} for n in range(first, last)], results.ROWS)
    storage.write(results.shard_key(job, results.shard_name(first, last)), results.shard_bytes(rows))


def work_off(store, job):
    """Claim and commit all that is left, as one worker would; returns the units in order."""
    found = []
    while store.waiting():
        unit = store.waiting()[0][1]
        claim = store.claim(job, unit, "w1")
        found.append(unit)
        if unit == "finish":
            assert store.finish(claim, State.DONE, result={})
        elif unit.startswith("plan"):
            assert store.commit(claim, {"counts": {"planned": 1}}, last="finish") is not None
        else:
            first, last = results.shard_range(unit)
            assert store.commit(claim, {"counts": {"done": last - first}}) is not None
    return found


def end_done(store, claim):
    store.finish(claim, State.DONE, result={"model": "digits"})


def end_failed(store, claim):
    store.finish(claim, State.FAILED, error="The disk burnt.")


def end_cancelled(store, claim):
    store.cancel(claim.job)
    store.release(claim)


@pytest.mark.parametrize("end", [end_done, end_failed, end_cancelled])
def test_a_job_that_had_ended_is_entered_as_it_ended(store, storage, end):
    job = order(store, storage)
    end(store, store.claim(job, "main", "w1"))
    keep_record(store, storage, job)
    before = store.get(job)
    assert before.state.terminal
    forget(store)
    assert recover(store, storage) == [job]
    after = store.get(job)
    for field in ("kind", "state", "spec", "created", "started", "ended", "error", "result"):
        assert getattr(after, field) == getattr(before, field), field
    assert store.waiting() == []
    assert [job.id for job in store.page()] == [job]


def test_a_training_that_waited_waits_again(store, storage):
    job = order(store, storage)
    forget(store)
    recover(store, storage)
    assert store.get(job).state == State.QUEUED
    assert [(found, unit) for found, unit, *_ in store.waiting()] == [(job, "main")]


def test_a_training_that_ran_begins_again_and_its_old_worker_can_commit_nothing(store, storage):
    job = order(store, storage)
    old = store.claim(job, "main", "w1")
    forget(store)
    recover(store, storage)
    new = store.claim(job, "main", "w2")
    assert new.attempt == 1
    assert store.renew(old) == "lost"
    assert store.finish(old, State.DONE) is False
    assert store.finish(new, State.DONE) is True


def test_recovering_twice_or_while_work_goes_on_changes_nothing(store, storage):
    job, ended = order(store, storage), order(store, storage)
    store.cancel(ended)
    keep_record(store, storage, ended)
    assert recover(store, storage) == []
    forget(store)
    assert recover(store, storage) == [job, ended]
    claim = store.claim(job, "main", "w1")
    before = [store.get(job), store.get(ended)]
    assert recover(store, storage) == []
    assert [store.get(job), store.get(ended)] == before
    assert store.renew(claim) == "ok"


def test_a_batch_goes_on_with_the_shards_that_have_no_file(store, storage):
    job = order(store, storage, "classify", "plan")
    list_items(storage, job, 0, 18, over=True)
    label(storage, job, 4, 8)
    label(storage, job, 8, 10)  # half of a shard on which workers died
    forget(store)
    recover(store, storage)
    counts = store.get(job).counts
    assert (counts["items"], counts["done"], counts["planned"]) == (18, 6, 1)
    assert store.histogram(job, "labels") == {"cat": 6}
    assert work_off(store, job) == ["00000000-00000004", "00000010-00000014", "00000014-00000018", "finish"]
    after = store.get(job)
    assert (after.state, after.counts["done"], after.counts["units_done"]) == (State.DONE, 18, after.counts["units"])


def test_a_batch_with_a_file_for_each_shard_is_only_finished(store, storage):
    job = order(store, storage, "classify", "plan")
    list_items(storage, job, 0, 6, over=True)
    label(storage, job, 0, 4)
    label(storage, job, 4, 6)
    forget(store)
    recover(store, storage)
    assert work_off(store, job) == ["finish"]
    assert store.get(job).state == State.DONE


@pytest.mark.parametrize(("listed", "plan"), [(0, "plan"), (8, "plan-8")])
def test_a_batch_whose_items_were_not_all_listed_is_listed_on(store, storage, listed, plan):
    job = order(store, storage, "classify", "plan")
    if listed:
        list_items(storage, job, 0, listed, over=False)
        label(storage, job, 0, 4)
    forget(store)
    recover(store, storage)
    assert "planned" not in store.get(job).counts
    left = ["00000004-00000008"] if listed else []
    assert sorted(work_off(store, job)) == sorted([*left, plan, "finish"])
    assert store.get(job).state == State.DONE


def test_a_batch_that_ended_unheard_is_done(store, storage):
    job = order(store, storage, "classify", "plan")
    list_items(storage, job, 0, 4, over=True)
    label(storage, job, 0, 4)
    result = {"items": 4, "errors": 0, "created": 1_700_000_000.5}
    storage.write_json(f"batches/{job}/info.json", result)
    forget(store)
    recover(store, storage)
    after = store.get(job)
    assert (after.state, after.result, after.ended, after.counts["done"]) == (State.DONE, result, 1_700_000_000.5, 4)
    assert store.waiting() == []


def test_a_batch_that_should_rest_rests_and_one_that_should_end_has_ended(store, storage):
    resting, ending = (order(store, storage, "classify", "plan") for _ in range(2))
    store.claim(ending, "plan", "w1")  # its worker will never hear of it
    store.pause(resting)
    store.cancel(ending)
    for job in (resting, ending):
        keep_record(store, storage, job)
    forget(store)
    recover(store, storage)
    assert (store.get(resting).state, store.get(ending).state) == (State.PAUSED, State.CANCELLED)
    assert store.waiting() == []
    assert store.resume(resting) == ["plan"]


def test_a_shard_may_begin_anywhere_in_a_portion(store, storage):
    """What was done before may end in the middle of a row group."""
    job = order(store, storage, "classify", "plan")
    list_items(storage, job, 0, 3000, over=True)
    for first, last in [(0, 4), (1020, 1030), (1000, 2500), (2996, 3000)]:
        assert [item["item_id"] for item in portions.items(storage, job, first, last)] == list(range(first, last))
