"""The ledger: what can happen to a job and its units, one at a time and all at once."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis as redis_library

from shared.errors import NotFound, Unavailable
from shared.jobs import MOVES, Claim, JobStore, State, connect, new_id


@pytest.fixture
def store(settings):
    return JobStore(connect(settings.redis_url), lease_seconds=60)


@pytest.fixture
def hasty(settings):
    """A ledger whose leases run out in a twentieth of a second."""
    return JobStore(connect(settings.redis_url), lease_seconds=0.05)


def claimed(store, job, unit="main", worker="w1") -> Claim:
    claim = store.claim(job, unit, worker)
    assert claim is not None
    return claim


A, B = "00000000-00000004", "00000004-00000008"  # two shards of four items


def batch(store, items=8, size=4):
    """A batch whose plan is done: its id and the units to send."""
    job = store.create("classify", {}, "plan")
    tally = {"counts": {"items": items, "planned": 1}}
    return job, store.commit(claimed(store, job, "plan"), tally, stretches=[(0, items, size)], last="finish")


def test_ids_sort_by_time():
    earlier = new_id()
    time.sleep(0.002)
    assert earlier < new_id()


def test_a_new_job_is_queued_with_its_spec(store):
    job = store.get(store.create("train", {"dataset": "digits"}, "main"))
    assert (job.state, job.kind, job.spec, job.counts["units"]) == (State.QUEUED, "train", {"dataset": "digits"}, 1)


def test_an_unknown_job_is_not_found(store):
    with pytest.raises(NotFound, match="no job"):
        store.get("0nope")
    with pytest.raises(NotFound):
        store.cancel("0nope")


def test_the_same_idempotency_key_is_one_job(store):
    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(lambda _: store.create("train", {}, "main", "key-1"), range(32)))
    assert len(ids) == 1
    assert len(store.page()) == 1


def test_a_unit_is_leased_to_one_worker_only(store):
    job = store.create("train", {}, "main")
    with ThreadPoolExecutor(8) as threads:
        claims = [c for c in threads.map(lambda n: store.claim(job, "main", f"w{n}"), range(32)) if c]
    assert len(claims) == 1
    assert store.get(job).state == State.RUNNING


def test_a_job_ends_once_and_keeps_its_result(store):
    job = store.create("train", {}, "main")
    claim = claimed(store, job)
    assert store.finish(claim, State.DONE, result={"error_rate": 0.1})
    assert store.get(job).result == {"error_rate": 0.1}
    assert store.claim(job, "main", "w2") is None


def test_repeating_an_outcome_changes_nothing(store):
    """redis-py sends a command again when its answer was lost."""
    job, _ = batch(store)
    claim = claimed(store, job, A)
    for _ in range(3):
        store.commit(claim, {"counts": {"done": 1}, "hashes": {"labels": {"cat": 1}}})
    assert store.get(job).counts["done"] == 1
    assert store.histogram(job, "labels") == {"cat": 1}


def test_a_worker_believed_dead_cannot_commit(hasty):
    job, _ = batch(hasty)
    zombie = claimed(hasty, job, A, "w1")
    time.sleep(0.1)
    successor = claimed(hasty, job, A, "w2")
    assert hasty.commit(zombie, {"counts": {"done": 1}}) is None
    assert hasty.renew(zombie) == "lost"
    assert hasty.commit(successor, {"counts": {"done": 1}}) is not None
    assert hasty.get(job).counts["done"] == 1
    assert successor.attempt == 2


def test_a_lease_that_ran_out_is_taken_back_and_says_who_died(hasty):
    job = hasty.create("train", {}, "main")
    claimed(hasty, job, worker="w1")
    time.sleep(0.1)
    assert hasty.expire_leases() == [(job, "main")]
    assert hasty.get(job).state == State.QUEUED
    assert "w1 stopped answering" in hasty.get(job).note
    assert [(j, u) for j, u, *_ in hasty.waiting()] == [(job, "main")]


def test_a_renewed_lease_is_not_taken_back(store):
    job = store.create("train", {}, "main")
    assert store.renew(claimed(store, job), {"done": 3}) == "ok"
    assert store.expire_leases() == []
    assert store.get(job).progress == {"done": 3}


def test_one_unit_of_a_giant_batch_is_in_the_queue_and_each_claim_sends_the_next(store):
    job, units = batch(store, items=1_000_000)
    assert units == [A]
    first, second = claimed(store, job, A), claimed(store, job, B)
    assert (first.send, second.send) == ((B,), ("00000008-00000012",))
    assert store.commit(first) == []  # one waits already


def test_a_million_items_take_a_few_bytes_of_the_ledger_however_small_the_shards(store):
    job, _ = batch(store, items=1_000_000, size=1)
    assert store.redis.memory_usage(f"darkroom:job:{job}:unsent") < 1000
    assert store.get(job).counts["units"] == 1_000_001


def test_a_worker_takes_the_next_shard_without_a_message(store):
    job, _ = batch(store, items=12)
    taken = store.take(job, "w")
    assert (taken.unit, taken.attempt) == (B, 1)
    assert store.take(job, "w").unit == "00000008-00000012"
    assert store.take(job, "w") is None
    assert store.commit(taken) == []


def test_others_wait_only_if_another_job_has_work_in_the_queue(store):
    job, _ = batch(store)
    store.redis.rpush("classify", "own message")
    assert not store.others_wait(job, ["classify.high", "classify"])
    store.redis.rpush("classify.high", "somebody else's")
    assert store.others_wait(job, ["classify.high", "classify"])


def test_the_last_unit_follows_when_all_others_are_done(store):
    job, _ = batch(store)
    first, second = claimed(store, job, A), claimed(store, job, B)
    assert store.commit(first) == []
    assert store.commit(second) == ["finish"]
    assert store.finish(claimed(store, job, "finish"), State.DONE, result={})
    assert store.get(job).state == State.DONE


def test_shards_are_worked_on_while_the_rest_is_still_listed(store):
    job = store.create("classify", {}, "plan")
    plan = claimed(store, job, "plan")
    assert store.commit(plan, {"counts": {"items": 4}}, stretches=[(0, 4, 4)], following="plan-4") == ["plan-4"]
    portion = claimed(store, job, "plan-4")
    assert portion.send == (A,)
    assert store.commit(claimed(store, job, A)) == []  # all that is known is done, but the listing goes on
    assert store.commit(portion, {"counts": {"items": 4, "planned": 1}}, stretches=[(4, 8, 4)], last="finish") == [B]
    assert store.commit(claimed(store, job, B)) == ["finish"]
    assert store.get(job).counts["items"] == 8


def test_a_split_shard_counts_as_its_parts(store):
    job, _ = batch(store, items=4)
    halves = ["00000000-00000002", "00000002-00000004"]
    assert store.split(claimed(store, job, A), halves) == halves[:1]
    assert store.claim(job, A, "w") is None
    first = claimed(store, job, halves[0])
    assert first.send == (halves[1],)
    store.commit(first)
    assert store.commit(claimed(store, job, halves[1])) == ["finish"]


def test_a_paused_batch_rests_and_goes_on_where_it_was(store):
    job, _ = batch(store, items=12)
    held = claimed(store, job, A)
    assert store.pause(job) == State.RUNNING  # a worker holds a shard
    assert store.renew(held) == "pause"
    assert store.claim(job, B, "w") is None
    assert store.take(job, "w") is None
    store.release(held, counted=False)
    assert store.get(job).state == State.PAUSED
    assert store.waiting() == []
    assert len(store.resume(job)) == 1
    assert store.get(job).state == State.QUEUED
    done = []
    while unit := next((u for _, u, *_ in store.waiting()), None):
        claim = claimed(store, job, unit)
        assert claim.attempt == 1
        done.append(unit)
        store.commit(claim)
    assert sorted(done) == [A, B, "00000008-00000012", "finish"]


def test_a_queued_job_is_paused_at_once_and_cancelled_at_once(store):
    job = store.create("classify", {}, "plan")
    assert store.pause(job) == State.PAUSED
    assert store.claim(job, "plan", "w") is None
    assert store.resume(job) == ["plan"]
    assert store.pause(job) == State.PAUSED
    assert store.cancel(job) == State.CANCELLED
    assert store.resume(job) == []


def test_a_shard_that_is_committed_while_the_batch_is_paused_counts(store):
    job, _ = batch(store)
    held = claimed(store, job, A)
    store.pause(job)
    assert store.commit(held, {"counts": {"done": 4}}) == []
    assert (store.get(job).state, store.get(job).counts["done"]) == (State.PAUSED, 4)
    assert store.claim(job, B, "w") is None  # its message comes meanwhile
    assert store.resume(job) == [B]


def test_a_lease_that_ran_out_in_a_paused_batch_waits_for_the_resume(hasty):
    job, _ = batch(hasty, items=4)
    claimed(hasty, job, A)
    hasty.pause(job)
    time.sleep(0.1)
    hasty.expire_leases()
    assert hasty.get(job).state == State.PAUSED
    assert hasty.resume(job) == [A]


def test_a_job_is_failed_whatever_its_workers_do(store):
    job, _ = batch(store)
    held = claimed(store, job, A)
    assert store.fail(job, "Too many bad images.")
    assert store.renew(held) == "lost"
    assert store.commit(held) is None
    assert (store.get(job).state, store.get(job).error) == (State.FAILED, "Too many bad images.")
    assert not store.fail(job, "Again.")


def test_a_queued_job_is_cancelled_at_once_with_no_worker(store):
    job = store.create("train", {}, "main")
    assert store.cancel(job) == State.CANCELLED
    assert store.claim(job, "main", "w") is None
    assert store.waiting() == [] or not store.resend(job, "main")


def test_a_running_job_is_cancelled_when_its_last_worker_stops(store):
    job, _ = batch(store)
    first, second = claimed(store, job, A), claimed(store, job, B)
    assert store.cancel(job) == State.RUNNING
    assert store.renew(first) == "cancel"
    store.release(first, counted=False)
    assert store.get(job).state == State.RUNNING
    store.release(second, counted=False)
    assert store.get(job).state == State.CANCELLED


def test_a_cancelled_job_whose_worker_died_ends_when_the_lease_does(hasty):
    job = hasty.create("train", {}, "main")
    claimed(hasty, job)
    hasty.cancel(job)
    time.sleep(0.1)
    hasty.expire_leases()
    assert hasty.get(job).state == State.CANCELLED


def test_work_given_back_is_not_an_attempt(store):
    job = store.create("train", {}, "main")
    store.release(claimed(store, job), counted=False)
    assert store.get(job).state == State.QUEUED
    assert claimed(store, job).attempt == 1


def test_rows_are_appended_once_and_a_new_attempt_starts_anew(store):
    job = store.create("train", {}, "main")
    claim = claimed(store, job)
    for _ in range(2):
        store.append(claim, "epochs", 0, [{"epoch": 0}])
    store.append(claim, "epochs", 1, [{"epoch": 1}])
    assert store.rows(job, "epochs") == [{"epoch": 0}, {"epoch": 1}]
    store.append(claim, "epochs", 0, [{"epoch": 0, "again": True}])
    assert store.rows(job, "epochs") == [{"epoch": 0, "again": True}]


def test_no_state_is_left_but_by_a_legal_move(store):
    for terminal in (State.DONE, State.FAILED, State.CANCELLED):
        assert terminal.terminal
        assert MOVES[terminal] == ()
    job = store.create("train", {}, "main")
    claim = claimed(store, job)
    store.finish(claim, State.FAILED, error="It broke.")
    assert not store.finish(claim, State.DONE)
    assert (store.get(job).state, store.get(job).error) == (State.FAILED, "It broke.")


def test_jobs_are_listed_newest_first_by_page_and_state(store):
    ids = sorted(store.create("train", {}, "main") for _ in range(5))
    store.cancel(ids[1])
    assert [j.id for j in store.page(limit=2)] == [ids[4], ids[3]]
    assert [j.id for j in store.page(before=ids[3])] == [ids[2], ids[1], ids[0]]
    assert [j.id for j in store.page(states=(State.CANCELLED,))] == [ids[1]]
    assert store.counts() == {"queued": 4, "running": 0, "paused": 0, "done": 0, "failed": 0, "cancelled": 1}


def test_a_worker_is_listed_with_what_it_holds_until_it_departs(store):
    job = store.create("train", {}, "main")
    store.announce("w1", {"name": "w1", "queues": ["train"]})
    claimed(store, job, worker="w1")
    assert store.workers() == [{"name": "w1", "queues": ["train"], "busy": [[job, "main"]]}]
    store.depart("w1")
    assert store.workers() == []


def test_one_worker_sweeps_at_a_time(store):
    assert store.sweeping("w1")
    assert not store.sweeping("w2")
    assert store.sweeping("w1")


def test_a_question_is_asked_and_answered_once(store):
    asked = store.ask({"model": "digits"}, b"\x00\n\xff")
    assert store.next_question(1) == (asked, {"model": "digits"}, b"\x00\n\xff")
    assert store.next_question(0.01) is None
    store.answer(asked, {"label": "7"})
    assert store.await_answer(asked, 1) == {"label": "7"}


def test_redis_away_is_a_sentence():
    with pytest.raises(Unavailable, match="Redis cannot be reached"):
        JobStore(connect("redis://127.0.0.1:1", timeout=0.2)).counts()


def test_the_script_and_the_table_of_keys_agree(store, settings):
    """Every key that a life of a job writes is in the module's table."""
    import shared.jobs

    job, _ = batch(store, items=4)
    claim = claimed(store, job, A)
    store.append(claim, "loss", 0, [[1, 2.0]])
    store.commit(claim, {"hashes": {"labels": {"x": 1}}, "latest": ["{}"]})
    client = redis_library.Redis.from_url(settings.redis_url)
    for key in client.scan_iter("darkroom:*"):
        head = key.decode().removeprefix("darkroom:").split(":")[0]
        assert f"`{head}" in shared.jobs.__doc__, key
