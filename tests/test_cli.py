"""The `darkroom` command against the real web in a thread; the tests play the worker."""

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from werkzeug.serving import make_server

from cli import follow, pack
from cli.client import Client
from cli.main import cli
from cli.pack import upload
from shared import datasets, results
from shared.items import ItemReader, blob_key, walk
from shared.jobs import EXPLAIN, Claim, Job, JobStore, State, new_id
from shared.settings import Settings
from shared.specs import ListSource, TrainSpec, UploadSource
from shared.storage import Storage
from web import create_app
from web.backend import Backend

ROOT = Path(__file__).parents[1]
Run = Callable[..., Result]


@pytest.fixture
def backend(settings: Settings) -> Backend:
    return Backend(settings)


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, create_app(settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(url: str) -> Run:
    return lambda *args, **more: CliRunner().invoke(cli, ["--url", url, *map(str, args)], **more)


@pytest.fixture
def working(backend: Backend) -> Iterator[Callable[[Callable[[JobStore, Job], None]], None]]:
    """Start a thread that does `work` with the first job that is ordered."""
    threads: list[threading.Thread] = []
    stop = threading.Event()

    def start(work: Callable[[JobStore, Job], None]) -> None:
        def serve() -> None:
            while not stop.wait(0.02):
                if jobs := backend.store.page(1):
                    work(backend.store, jobs[0])
                    return

        threads.append(threading.Thread(target=serve))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def claimed(store: JobStore, job: Job, unit: str = "main") -> Claim:
    claim = store.claim(job.id, unit, "tester")
    assert claim
    return claim


def finish(state: State, error: str = "", **result: Any) -> Callable[[JobStore, Job], None]:
    def work(store: JobStore, job: Job) -> None:
        store.finish(claimed(store, job), state, error, result)

    return work


def make_dataset(storage: Storage, folder: Path, labels: tuple[str, ...] = ("cat", "dog")) -> None:
    rows = [datasets.blank_row(sha256=f"{i:064x}", ext="png", label=label, status="kept", bytes=10) for i, label in enumerate(labels * 3)]
    folder.mkdir()
    (folder / "manifest.parquet").write_bytes(datasets.manifest_bytes(rows))
    info = {"dataset": "animals", "created": time.time() - 180, "job": new_id(), "source": "folder", **datasets.summary(rows)}
    storage.publish_version("datasets/animals", folder, info)


def make_model(storage: Storage, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    info = {
        "model": "animals", "created": 1.0, "job": new_id(), "arch": "resnet18", "classes": ["cat", "[red]dog"], "image_size": 224,
        "spec": {}, "error_rate": 0.125, "dataset": {"name": "animals", "version": 1}, "train_images": 80, "valid_images": 20,
        "train_seconds": 61, "device": "cpu", "parent": None,
    }  # fmt: skip
    storage.publish_version("models/animals", folder, info)


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "teal").save(folder / name)
    return folder


def result_row(item: int, **values: Any) -> dict[str, Any]:
    row = {
        "item_id": item, "uri": f"{item}.png", "locator": "", "sha256": "", "label": "cat", "probability": 0.75, "top_labels": ["cat"],
        "top_probabilities": [0.75], "margin": 0.5, "entropy": 0.1, "decision": "accept", "error_code": "", "error": "", "model": "animals",
        "model_version": 1, "width": 8, "height": 8, "ms": 1.0,
    }  # fmt: skip
    return {**row, **values}


def classify_three(storage: Storage) -> Callable[[JobStore, Job], None]:
    """What the workers do with a batch of three pictures: two cats and an error."""

    def work(store: JobStore, job: Job) -> None:
        shard = results.shard_name(0, 3)
        store.commit(claimed(store, job, "plan"), {"counts": {"items": 3}}, stretches=[(0, 3, 3)], last="finish")
        rows = [
            result_row(0),
            result_row(1),
            result_row(2, label="", probability=None, decision="", error_code="truncated", error="Damaged."),
        ]
        table = pa.Table.from_pylist(rows, schema=results.ROWS)
        storage.write(results.shard_key(job.id, shard), results.shard_bytes(table))
        store.commit(claimed(store, job, shard), results.tally(table))
        store.finish(claimed(store, job, "finish"), State.DONE, result={"items": 3, "errors": 1})

    return work


# -- flags ------------------------------------------------------------------------------------------------------------


def test_the_command_line_starts_without_torch_flask_and_celery() -> None:
    code = "import sys, cli.main; print([m for m in ('torch', 'flask', 'celery', 'fastai') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_field_of_a_training_is_a_flag_with_the_default_of_the_spec() -> None:
    text = " ".join(CliRunner().invoke(cli, ["train", "--help"]).output.split())
    for name, field in TrainSpec.model_fields.items():
        if name not in {"dataset", "rule"}:  # an argument, and what no person gives
            assert f"--{name.replace('_', '-')}" in text
            assert " ".join((field.description or "").split()[:3]) in text
    assert "[default: 64; 2<=x<=2048]" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "animals", "--epochs", "0"], "0 is not in the range"),
        (["train", "animals", "--arch", "vgg"], "unknown architecture"),
        (["train", "../animals"], "a name is lower-case letters"),
        (["dataset", "scrape", "wonders", "--class", "one"], "at least 2 items"),
        (["dataset", "scrape", "wonders", "--class", "a", "--class", "A"], "named twice"),
        (["dataset", "scrape", "wonders", "--class", "a", "--class", "b", "--sources", "bing"], "'bing' is not one of"),
        (["dataset", "import", "animals", "/no/such/folder"], "no file or folder"),
        (["classify", "animals"], "Name what to label"),
        (["classify", "animals", ".", "--out", "results.xlsx"], "should end in .csv, .jsonl or .parquet"),
        (["classify", "animals", ".", "--out", "/no/such/folder/results.csv"], "no such folder"),
        (["classify", "animals", ".", "--top-k", "99"], "99 is not in the range"),
        (["worker", "--queues", "train,mail"], "--queues takes one or more of predict"),
        (["up", "--port", "99999"], "99999 is not in the range"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_sent(args: list[str], words: str) -> None:
    done = CliRunner().invoke(cli, ["--url", "http://127.0.0.1:1", *args])
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in " ".join(done.stderr.split())


# -- when the web is not there ----------------------------------------------------------------------------------------


def test_a_web_that_is_not_there_is_a_sentence_that_says_how_to_start_it() -> None:
    done = CliRunner().invoke(cli, ["--url", "http://127.0.0.1:1", "jobs"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: Darkroom cannot be reached at http://127.0.0.1:1. Start it with `darkroom up`")


def test_an_address_that_is_none_is_a_sentence() -> None:
    done = CliRunner().invoke(cli, ["--url", "not an address", "jobs"])
    assert done.exit_code == 1
    assert "is no address of a web" in done.stderr


def test_something_else_that_answers_at_the_address_is_told_apart(run: Run, url: str) -> None:
    done = CliRunner().invoke(cli, ["--url", f"{url}/datasets", "jobs"])
    assert done.exit_code == 1
    assert "is not Darkroom" in done.stderr


def test_the_address_can_come_from_the_environment(url: str) -> None:
    assert CliRunner().invoke(cli, ["jobs", "--json"], env={"DARKROOM_URL": url}).stdout == "[]\n"


# -- datasets ---------------------------------------------------------------------------------------------------------


def uploaded(backend: Backend, job: dict[str, Any]) -> list[str]:
    """The names in the upload of a job; each of its files can be read."""
    items = list(walk(UploadSource.model_validate(job["spec"]["source"]), backend.storage, backend.settings))
    assert all(ItemReader(backend.storage, 10**6).read(locator) for _, locator, _ in items)
    return [uri for uri, _, _ in items]


def test_a_local_folder_is_sent_file_by_file_and_ordered_as_an_import(run: Run, backend: Backend, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "animals", "cat/1.png", "dog/1.jpg", "dog/.hidden.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "cat" / "link.png").symlink_to("/etc/passwd")
    done = run("dataset", "import", "animals", folder, "--json")
    assert done.exit_code == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["kind"], job["spec"]["dataset"]) == ("import", "animals")
    assert uploaded(backend, job) == ["cat/1.png", "dog/1.jpg"]


def test_an_upload_that_broke_off_goes_on_where_it_was(run: Run, backend: Backend, tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    for n in range(10):
        pictures(folder, f"cat/{n}.png")
        Image.new("RGB", (8, 8), (n, n, n)).save(folder / f"cat/{n}.png")
    sent = {n: (folder / f"cat/{n}.png").read_bytes() for n in range(7)}
    for data in sent.values():  # what an earlier run had sent
        backend.storage.write(blob_key(hashlib.sha256(data).hexdigest()), data)
    earlier = {path: path.stat().st_ino for path in Path(backend.storage.url).rglob("blobs/*/*")}
    job = json.loads(run("dataset", "import", "animals", folder, "--json").stdout)
    assert uploaded(backend, job) == [f"cat/{n}.png" for n in range(10)]
    assert len(list(Path(backend.storage.url).rglob("blobs/*/*"))) == 10
    assert {path: path.stat().st_ino for path in earlier} == earlier  # touched, and not written again


def test_a_file_larger_than_the_server_takes_is_named_all_the_same(settings: Settings, tmp_path: Path) -> None:
    small = settings.model_copy(update={"max_image_bytes": 200})
    server = make_server("127.0.0.1", 0, create_app(small), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        folder = pictures(tmp_path / "animals", "cat/1.png")
        (folder / "cat" / "2.png").write_bytes(b"x" * 201)
        job = upload(Client(f"http://127.0.0.1:{server.port}"), [folder])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    items = list(walk(UploadSource.model_validate(job), Storage(settings.storage, settings.cache), small))
    assert [(uri, locator.split(":")[0]) for uri, locator, _ in items] == [("cat/1.png", "blob"), ("cat/2.png", "error")]


def test_files_in_many_portions_arrive_in_their_order(run: Run, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "PORTION", 3)
    folder = pictures(tmp_path / "animals", *(f"cat/{n}.png" for n in range(8)))
    job = json.loads(run("dataset", "import", "animals", folder, "--json").stdout)
    assert uploaded(backend, job) == [f"cat/{n}.png" for n in range(8)]


def test_a_local_zip_is_uploaded_as_it_is(run: Run, backend: Backend, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", b"x")
    job = json.loads(run("dataset", "import", "animals", tmp_path / "a.zip", "--json").stdout)
    assert backend.storage.read(f"uploads/{job['spec']['source']['id']}.zip") == (tmp_path / "a.zip").read_bytes()


def test_a_folder_without_pictures_is_not_uploaded(run: Run, backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("dataset", "import", "animals", tmp_path / "empty")
    assert (done.exit_code, backend.storage.list("uploads")) == (1, [])
    assert "There are no pictures in" in done.stderr


def test_a_folder_of_the_server_is_named_and_not_uploaded(run: Run, backend: Backend, tmp_path: Path) -> None:
    job = json.loads(run("dataset", "import", "animals", tmp_path, "--on-server", "--json").stdout)
    assert job["spec"]["source"] == {"kind": "folder", "path": str(tmp_path)}
    assert backend.storage.list("uploads") == []


def test_classes_to_scrape_may_carry_what_to_search_for(run: Run) -> None:
    args = ["--class", "Taj Mahal", "--class", "Petra=Petra Jordan ruins", "--per-class", "7", "--sources", "commons"]
    spec = json.loads(run("dataset", "scrape", "wonders", *args, "--json").stdout)["spec"]
    assert spec["classes"] == [{"name": "Taj Mahal", "query": ""}, {"name": "Petra", "query": "Petra Jordan ruins"}]
    assert (spec["per_class"], spec["sources"]) == (7, ["commons"])


def test_datasets_are_listed_as_a_table_or_as_json(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_dataset(backend.storage, tmp_path / "d")
    assert run("dataset", "list").stdout.splitlines()[1].split("\t") == ["animals", "v1", "6", "2", "60 bytes", "3 min ago"]
    assert [d["dataset"] for d in json.loads(run("dataset", "list", "--json").stdout)] == ["animals"]


def test_a_dataset_is_shown_with_its_classes(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_dataset(backend.storage, tmp_path / "d", labels=("[bold]cat", "dog"))
    for args in (["animals"], ["animals", "--version", "1"]):
        assert "[bold]cat\t3\t50.0%" in run("dataset", "show", *args).stdout


def test_a_dataset_that_is_not_there_ends_with_1_and_a_sentence(run: Run) -> None:
    done = run("dataset", "show", "nothing", "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: There is no dataset 'nothing'. `darkroom dataset list` shows what there is.\n"


# -- training and following -------------------------------------------------------------------------------------------


def train(store: JobStore, job: Job) -> None:
    claim = claimed(store, job)
    store.renew(claim, {"phase": "training", "done": 5, "total": 10})
    row = {"frozen": False, "train_loss": 0.5, "valid_loss": 0.25, "seconds": 61.0}
    store.append(claim, "epochs", 0, [{**row, "epoch": 1, "frozen": True, "error_rate": 0.5}, {**row, "epoch": 2, "error_rate": 0.125}])
    store.finish(claim, State.DONE, result={"model": "animals", "version": 1, "error_rate": 0.125})


def test_a_training_is_followed_with_a_line_an_epoch(run: Run, backend: Backend, tmp_path: Path, working: Any) -> None:
    make_dataset(backend.storage, tmp_path / "d")
    working(train)
    done = run("train", "animals", "--epochs", "1", "--start", "scratch", "--wait")
    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stderr.splitlines()]
    assert ["1", "head", "0.5000", "0.2500", "0.5000", "1", "min"] in lines
    assert ["2", "0.5000", "0.2500", "0.1250", "1", "min"] in lines
    assert "error rate  0.125" in done.stdout
    spec = backend.store.page(1)[0].spec
    assert (spec["epochs"], spec["start"]) == (1, "scratch")


def test_with_json_the_value_is_all_there_is_on_standard_output(run: Run, backend: Backend, tmp_path: Path, working: Any) -> None:
    make_dataset(backend.storage, tmp_path / "d")
    working(train)
    done = run("train", "animals", "--wait", "--json")
    assert json.loads(done.stdout)["result"]["error_rate"] == 0.125
    assert "0.1250" in done.stderr


def test_without_wait_the_job_is_ordered_and_told(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_dataset(backend.storage, tmp_path / "d")
    done = run("train", "animals")
    assert done.exit_code == 0
    job_id = backend.store.page(1)[0].id
    assert job_id in done.stdout
    assert "queued" in done.stdout
    assert done.stderr == f"Follow it with `darkroom job show {job_id} --wait`.\n"


def test_a_job_that_fails_ends_with_1_and_its_sentence(run: Run, working: Any) -> None:
    working(finish(State.FAILED, "The search found nothing."))
    done = run("dataset", "scrape", "wonders", "--class", "a", "--class", "b", "--wait")
    assert done.exit_code == 1
    assert "Error: The job failed: The search found nothing." in done.stderr


def test_a_job_that_is_cancelled_ends_with_1(run: Run, working: Any) -> None:
    working(lambda store, job: store.cancel(job.id) and None)
    done = run("dataset", "scrape", "wonders", "--class", "a", "--class", "b", "--wait")
    assert (done.exit_code, "The job was cancelled." in done.stderr) == (1, True)


def test_a_web_that_is_briefly_away_is_waited_for(settings: Settings, backend: Backend, working: Any) -> None:
    app = create_app(settings)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    port, servers = server.port, [server]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def restart(store: JobStore, job: Job) -> None:
        claim = claimed(store, job)
        servers[0].shutdown()
        servers[0].server_close()
        time.sleep(1.2)
        servers.append(make_server("127.0.0.1", port, app, threaded=True))
        threading.Thread(target=servers[1].serve_forever, kwargs={"poll_interval": 0.02}).start()
        store.finish(claim, State.DONE)

    working(restart)
    args = ["dataset", "scrape", "wonders", "--class", "a", "--class", "b", "--wait"]
    done = CliRunner().invoke(cli, ["--url", f"http://127.0.0.1:{port}", *args])
    servers[-1].shutdown()
    servers[-1].server_close()
    assert done.exit_code == 0, done.stderr
    assert "Trying again for 30 seconds." in done.stderr


def test_a_web_that_stays_away_ends_the_waiting(backend: Backend) -> None:
    from cli.client import Client
    from shared.errors import Unavailable

    with pytest.raises(Unavailable, match="cannot be reached"):
        follow.follow(Client("http://127.0.0.1:1"), new_id(), poll=0.01, patience=0.1)


def test_ctrl_c_ends_with_130_and_says_how_to_follow_the_job_that_goes_on(url: str, backend: Backend) -> None:
    args = ["--url", url, "dataset", "scrape", "wonders", "--class", "a", "--class", "b", "--wait"]
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from cli.main import cli; cli({args!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline() == "waiting for a worker\n"  # it follows
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    job = backend.store.page(1)[0]
    assert (process.returncode, job.state) == (130, State.QUEUED)
    assert f"darkroom job show {job.id} --wait" in said
    assert f"darkroom job cancel {job.id}" in said


def test_on_a_terminal_progress_is_a_bar_and_epochs_stay(url: str, backend: Backend, tmp_path: Path, working: Any) -> None:
    make_dataset(backend.storage, tmp_path / "d")
    working(train)
    ours, theirs = os.openpty()
    code = f"from cli.main import cli; cli({['--url', url, 'train', 'animals', '--wait', '--json']!r})"
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    screen = _read_all(ours)
    out, _ = process.communicate(timeout=20)
    assert json.loads(out)["state"] == "done"
    assert "━" in screen
    assert "0.1250" in screen


def _read_all(terminal: int) -> str:
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the last process has closed it
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode(errors="replace")


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_is_labelled_and_the_rows_are_saved(
    run: Run, backend: Backend, tmp_path: Path, working: Any, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    make_model(backend.storage, tmp_path / "m")
    working(classify_three(backend.storage))
    out = tmp_path / f"results.{suffix}"
    done = run("classify", "animals", pictures(tmp_path / "new", "1.png", "2.png", "3.png"), "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "cat\t2\t100.0%" in done.stdout
    assert "truncated\t1\t100.0%" in done.stdout
    assert _labels(out) == ["cat", "cat", ""]
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def _labels(path: Path) -> list[str]:
    if path.suffix == ".csv":
        return [row["label"] for row in csv.DictReader(io.StringIO(path.read_text()))]
    if path.suffix == ".jsonl":
        return [json.loads(line)["label"] for line in path.read_text().splitlines()]
    import pyarrow.parquet as pq

    return list(pq.read_table(path)["label"].to_pylist())


def test_with_json_a_batch_is_one_value_with_its_histograms(run: Run, backend: Backend, tmp_path: Path, working: Any) -> None:
    make_model(backend.storage, tmp_path / "m")
    working(classify_three(backend.storage))
    done = run("classify", "animals", pictures(tmp_path / "new", "1.png"), "--wait", "--json")
    assert json.loads(done.stdout)["histograms"]["labels"] == {"cat": 2}


def test_single_pictures_keep_the_names_they_were_given_by(
    run: Run, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(backend.storage, tmp_path / "m")
    monkeypatch.chdir(pictures(tmp_path / "here", "a/1.png", "b/1.png", "c/x/2.png"))
    job = json.loads(run("classify", "animals", "a/1.png", "./b/1.png", "c", "--json").stdout)
    assert uploaded(backend, job) == ["a/1.png", "b/1.png", "c/x/2.png"]


def test_addresses_are_read_from_a_file_or_from_standard_input(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    (tmp_path / "urls.txt").write_text("http://example.org/1.png\n\nhttps://example.org/2.png\n")
    (tmp_path / "list.csv").write_text("label,path\ncat,/srv/1.png\n")
    from_file = json.loads(run("classify", "animals", "--urls", tmp_path / "urls.txt", "--json").stdout)
    from_csv = json.loads(run("classify", "animals", "--list", tmp_path / "list.csv", "--json").stdout)
    from_input = json.loads(run("classify", "animals", "--list", "-", "--json", input="http://example.org/1.png\n").stdout)
    found = [
        [uri for uri, _, _ in walk(ListSource.model_validate(job["spec"]["source"]), backend.storage, backend.settings)]
        for job in (from_file, from_csv, from_input)
    ]
    assert found == [["http://example.org/1.png", "https://example.org/2.png"], ["/srv/1.png"], ["http://example.org/1.png"]]


def test_a_list_that_names_nothing_is_told(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    done = run("classify", "animals", "--list", "-", input="file:///etc/passwd\n")
    assert done.exit_code == 1
    assert "Not an http or https address" in done.stderr
    assert backend.store.page(1) == []


def test_a_dataset_can_be_classified(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    make_dataset(backend.storage, tmp_path / "d")
    for name in ("animals", "animals/v1"):
        job = json.loads(run("classify", "animals", "--dataset", name, "--json").stdout)
        assert job["spec"]["source"] == {"kind": "dataset", "dataset": "animals", "version": 1}
    assert run("classify", "animals", tmp_path, "--dataset", "animals").exit_code == 2


def test_a_batch_is_ordered_again_with_changes(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    first = json.loads(run("classify", "animals", tmp_path, "--on-server", "--top-k", "2", "--json").stdout)
    second = json.loads(run("batch", "clone", first["id"], "--precision", "exact", "--json").stdout)
    assert second["spec"] == {**first["spec"], "precision": "exact"}
    assert second["id"] != first["id"]


def test_the_failed_images_of_a_batch_are_ordered_again(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    job = json.loads(run("classify", "animals", tmp_path, "--on-server", "--json").stdout)
    running = run("batch", "retry-failed", job["id"])
    assert (running.exit_code, "has no rows" in running.stderr) == (1, True)
    classify_three(backend.storage)(backend.store, backend.store.get(job["id"]))
    again = json.loads(run("batch", "retry-failed", job["id"], "--json").stdout)
    assert again["spec"]["source"] == {"kind": "failed", "batch": job["id"]}


def test_results_can_be_saved_later_and_while_a_batch_runs(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    run("classify", "animals", tmp_path, "--on-server")
    job = backend.store.page(1)[0]
    classify_three(backend.storage)(backend.store, job)
    assert run("batch", "results", job.id, tmp_path / "later.csv").exit_code == 0
    assert _labels(tmp_path / "later.csv") == ["cat", "cat", ""]
    assert "cat\t2\t100.0%" in run("batch", "show", job.id).stdout
    assert job.id in run("batch", "list").stdout


def test_results_that_cannot_be_had_leave_no_file(run: Run, tmp_path: Path) -> None:
    done = run("batch", "results", new_id(), tmp_path / "out.csv")
    assert (done.exit_code, list(tmp_path.glob("*out.csv*"))) == (1, [])


# -- one picture, models, jobs, workers -------------------------------------------------------------------------------


def test_one_picture_is_labelled_at_once(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    picture = pictures(tmp_path, "x.png") / "x.png"
    stop = threading.Event()

    def answer() -> None:
        backend.store.announce("tester", {"name": "tester", "queues": ["predict"]})
        while not stop.is_set():
            if asked := backend.store.next_question(0.1):
                backend.store.answer(asked[0], {"label": "dog", "probabilities": {"cat": 0.25, "dog": 0.75}})

    thread = threading.Thread(target=answer)
    thread.start()
    while not backend.store.workers():
        stop.wait(0.01)
    table, value = run("predict", "animals", picture), run("predict", "animals", picture, "--json")
    stop.set()
    thread.join()
    assert table.stdout == "label\tprobability\ndog\t75.0%\ncat\t25.0%\n"
    assert json.loads(value.stdout)["label"] == "dog"


def test_a_heat_map_is_saved_over_the_picture(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    picture, out = pictures(tmp_path, "x.png") / "x.png", tmp_path / "heat.png"
    stop = threading.Event()

    def answer() -> None:
        backend.store.announce("tester", {"name": "tester", "queues": ["predict"]})
        shares = {"label": "cat", "probability": 0.75, "probabilities": {"cat": 0.75, "[red]dog": 0.25}}
        while not stop.is_set():
            if asked := backend.store.next_question(0.1, EXPLAIN):
                told = {"class": asked[1]["label"] or "cat", "heat": [[0.0, 1.0]], "seen": [0, 0, 1, 1]}
                backend.store.answer(asked[0], shares | told)

    thread = threading.Thread(target=answer)
    thread.start()
    while not backend.store.workers():
        stop.wait(0.01)
    shown = run("model", "look", "animals", picture, "--class", "[red]dog", "--out", out)
    value = run("model", "look", "animals/v1", picture, "--json")
    nowhere = run("model", "look", "animals", picture, "--out", tmp_path / "no" / "heat.png")
    stop.set()
    thread.join()
    assert re.findall(r"label\s+cat, 75.0%\nlooked for\s+\[red\]dog, 25.0%\npicture\s+\S+heat.png", shown.stdout)
    with Image.open(out) as saved:
        assert (saved.format, saved.size) == ("PNG", (8, 8))
        assert saved.getpixel((0, 4)) == (0, 128, 128)
        assert saved.getpixel((7, 4))[0] > 100
    assert json.loads(value.stdout)["class"] == "cat"
    assert "has no class 'hat'" in run("model", "look", "animals", picture, "--class", "hat").stderr
    assert (nowhere.exit_code, "cannot be opened" in nowhere.stderr) == (1, True)


def test_predicting_without_a_worker_says_how_to_start_one(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    done = run("predict", "animals", pictures(tmp_path, "x.png") / "x.png")
    assert done.exit_code == 1
    assert "darkroom worker --queues predict,classify" in done.stderr


def test_models_are_listed_and_shown_with_markup_as_text(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    assert run("model", "list").stdout.splitlines()[1].startswith("animals\tv1\tresnet18\t2\t12.5%\tanimals v1\t")
    assert "cat, [red]dog" in run("model", "show", "animals/v1").stdout
    assert json.loads(run("model", "show", "animals/v1", "--json").stdout)["version"] == 1
    assert run("model", "show", "animals/v9").exit_code == 1


def test_jobs_are_listed_shown_cancelled_and_retried(run: Run, backend: Backend) -> None:
    scrape = ["dataset", "scrape", "wonders", "--class", "a", "--class", "b"]
    run(*scrape)
    job_id = backend.store.page(1)[0].id
    assert run("jobs", "--state", "queued").stdout.splitlines()[1].startswith(f"{job_id}\tqueued\tScrape wonders\t")
    assert "The job is cancelled." in run("job", "cancel", job_id).stdout
    assert "cancelled" in run("job", "show", job_id).stdout
    assert run("job", "show", job_id, "--wait").exit_code == 1
    again = json.loads(run("job", "retry", job_id, "--json").stdout)
    assert (again["state"], again["id"] != job_id) == ("queued", True)
    assert run("job", "cancel", job_id).stderr == "Error: The job has ended already: it is cancelled.\n"


def test_a_batch_is_paused_and_resumed(run: Run, backend: Backend, tmp_path: Path) -> None:
    make_model(backend.storage, tmp_path / "m")
    run("classify", "animals", pictures(tmp_path, "x.png") / "x.png")
    job_id = backend.store.page(1)[0].id
    assert f"The batch is paused. `darkroom job resume {job_id}`" in run("job", "pause", job_id).stdout
    assert run("jobs", "--state", "paused").stdout.count(job_id) == 1
    assert json.loads(run("job", "resume", job_id, "--json").stdout)["state"] == "queued"


def test_a_version_is_promoted_compared_rolled_back_and_deleted(run: Run, backend: Backend, tmp_path: Path) -> None:
    for n in range(2):
        make_model(backend.storage, tmp_path / str(n))
        rows = [
            {"sha256": f"{i}", "ext": "png", "actual": "cat", "predicted": "cat", "probability": 1.0, "loss": 0.0} for i in range(n + 1)
        ]
        pq.write_table(pa.Table.from_pylist(rows), Path(backend.settings.storage) / f"models/animals/v{n + 1:04d}/validation.parquet")
    assert run("model", "promote", "animals/v1").stdout == "animals@production is v1.\n"
    assert run("model", "promote", "animals").stdout == "animals@production is v2, before v1.\n"
    assert run("model", "rollback", "animals").stdout == "animals@production is v1 again.\n"
    assert json.loads(run("model", "show", "animals@production", "--json").stdout)["version"] == 1
    assert re.search(r"images in common\s+1\b", run("model", "compare", "animals/v2", "animals/v1").stdout)
    assert re.search(
        r"review below\s+1.0000\nright from there\s+100.0%", run("model", "threshold", "animals", "--precision", "0.99").stdout
    )
    assert json.loads(run("model", "threshold", "animals/v2", "--json").stdout)["wanted"] == 0.95
    assert "is production" in run("model", "delete", "animals/v1", "--yes").stderr
    assert run("model", "delete", "animals/v2", "--yes").stdout == "animals/v2 is deleted.\n"


def test_a_training_is_resumed_and_trained_on(run: Run, backend: Backend) -> None:
    job_id = backend.store.create("train", {"dataset": "x", "version": 1, "model": "x"}, "main")
    assert "Only a training that is done can have more epochs" in run("job", "extend", job_id, "--epochs", "3").stderr
    run("job", "cancel", job_id)
    assert "nothing to go on from" in run("job", "resume", job_id).stderr


def test_what_redis_has_lost_is_recovered(run: Run, backend: Backend) -> None:
    run("dataset", "scrape", "wonders", "--class", "a", "--class", "b")
    job_id = backend.store.page(1)[0].id
    settings = backend.settings
    where = {"DARKROOM_REDIS_URL": settings.redis_url, "DARKROOM_STORAGE": settings.storage}
    assert "Nothing is missing" in CliRunner().invoke(cli, ["recover"], env=where).stdout
    backend.store.redis.flushall()
    assert json.loads(CliRunner().invoke(cli, ["recover", "--json"], env=where).stdout) == {"recovered": [job_id]}
    assert backend.store.get(job_id).state == "queued"


def test_workers_are_listed_with_what_waits(run: Run, backend: Backend) -> None:
    assert "There is no worker." in run("workers").stderr
    run("dataset", "scrape", "wonders", "--class", "a", "--class", "b")
    backend.store.announce("tester", {"name": "tester", "queues": ["train"], "device": "CPU, 2 cores"})
    shown = run("workers").stdout
    assert "tester\ttrain\tCPU, 2 cores" in shown
    assert "waiting in scrape  1" in shown


def test_a_control_character_never_reaches_the_terminal(run: Run, backend: Backend) -> None:
    backend.store.announce("x", {"name": "evil\x1b[2J\rname", "queues": []})
    shown = run("workers").stdout
    assert "\x1b" not in shown
    assert "\r" not in shown
