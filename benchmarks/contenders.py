"""One way of labelling photographs a run, alone in a process of its own: `python -m benchmarks.contenders NAME MODEL_FOLDER FILES`.

FILES is a text file with a path a line. The last line on standard output is JSON: `seconds` of labelling when everything
is warm, `images`, `start_up` (the time of the first prediction), and what else a contender has to say. `--out` keeps the
probabilities as a (N, C) float32 .npy file, in the order of the files.

All of them use the weights of one export and fastai's validation transform, each with its own defaults.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 8  # images before the clock starts
BATCH = 64  # images a mini-batch: fastai's default


def predict_loop(model: Path, files: list[Path], out: Path | None) -> dict[str, Any]:
    """`learn.predict` for one file after the other."""
    learn = _learner(model)
    learn.predict(files[0])
    start_up = time.time()
    for file in files[1:WARM_UP]:
        learn.predict(file)
    started = time.perf_counter()
    probabilities = [learn.predict(file)[2].numpy() for file in files]
    seconds = time.perf_counter() - started
    _keep(out, np.stack(probabilities))
    return {"seconds": seconds, "start_up": start_up}


def get_preds(workers: int, channels_last: bool = False) -> Callable[[Path, list[Path], Path | None], dict[str, Any]]:
    """`learn.get_preds` over all files, with a number of loader processes; `channels_last`: with a line that few know to write."""

    def contender(model: Path, files: list[Path], out: Path | None) -> dict[str, Any]:
        import torch

        learn = _learner(model)
        if channels_last:
            learn.model.to(memory_format=torch.channels_last)

        def label(some: list[Path]) -> np.ndarray:
            return learn.get_preds(dl=learn.dls.test_dl(some, num_workers=workers))[0].numpy()  # type: ignore[no-any-return]

        label(files[:WARM_UP])
        start_up = time.time()
        started = time.perf_counter()
        probabilities = label(files)
        seconds = time.perf_counter() - started
        _keep(out, probabilities)
        return {"seconds": seconds, "start_up": start_up}

    return contender


def _learner(model: Path) -> Any:
    """The learner from the export of a model that the benchmark trained itself: no pickle of a stranger is opened."""
    import torch
    from fastai.callback.progress import ProgressCallback
    from fastai.learner import load_learner

    learn = load_learner(model / "export.pkl", cpu=not torch.cuda.is_available())
    learn.remove_cb(ProgressCallback)
    return learn


# -- Ray Data ---------------------------------------------------------------------------------------------------------------


class Labeller:
    """The actor of Ray's guide to offline inference on images: the model is loaded once, and called with batches."""

    def __init__(self, model: str, prepares: bool) -> None:
        """`prepares`: the batches hold paths, and decoding is this actor's work too."""
        import torch

        self.crop = _crop(model)
        self.prepares = prepares
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = _learner(Path(model)).model.eval().to(self.device)
        info = json.loads((Path(model) / "info.json").read_text())
        stats = [info["mean"] or [0, 0, 0], info["std"] or [1, 1, 1]]
        self.mean, self.std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in stats)
        self.ready = time.time()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch of paths, or of paths and (N, S, S, 3) uint8 pixels -> paths and probabilities."""
        import torch
        from PIL import Image

        if self.prepares:
            pixels = np.stack([self.crop(np.asarray(Image.open(path).convert("RGB"))) for path in batch["path"]])
        else:
            pixels = batch["image"]
        with torch.inference_mode():
            x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div_(255)
            probabilities = self.model((x - self.mean) / self.std).softmax(dim=1).cpu().numpy()
        return {"path": batch["path"], "probabilities": probabilities, "ready": np.full(len(pixels), self.ready)}


def _crop(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """What the validation transform of fastai makes of an array of pixels."""
    from fastai.vision.augment import RandomResizedCrop
    from fastai.vision.core import PILImage

    size = json.loads((Path(model) / "info.json").read_text())["image_size"]
    return lambda pixels: np.asarray(RandomResizedCrop(size)(PILImage.create(pixels), split_idx=1))


def _prepare_row(row: dict[str, Any], model: str) -> dict[str, Any]:
    return {"path": row["path"], "image": _crop(model)(row["image"])}


def ray_data(prepares: bool) -> Callable[[Path, list[Path], Path | None], dict[str, Any]]:
    """Ray Data, from files to Parquet: `read_images`, `map` and an actor, or (`prepares`) paths and actors that do all of it.

    Ray starts its actors anew for each data set, so nothing can be warm; its clock starts when the last actor has its
    model, although files may have been decoded before. All cores are Ray's, without dashboard and telemetry.
    """

    def contender(model: Path, files: list[Path], out: Path | None) -> dict[str, Any]:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
        import pyarrow.parquet as pq
        import ray
        import torch

        home = Path(tempfile.mkdtemp(prefix="ray", dir=files_argument().parent))  # short: sockets lie in it
        gpus = torch.cuda.device_count()
        cores = len(os.sched_getaffinity(0))
        ray.init(
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(home),
            _node_ip_address="127.0.0.1",
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # beside an actor that is given decoded pictures, half of the cores decode them
        actors = gpus or (cores if prepares else max(cores // 2, 1))
        paths = [str(file) for file in files]
        if prepares:
            data = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=8 * cores)
        else:
            data = ray.data.read_images(paths, mode="RGB", include_paths=True).map(_prepare_row, fn_kwargs={"model": str(model)})
        data = data.map_batches(
            Labeller,
            fn_constructor_kwargs={"model": str(model), "prepares": prepares},
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
        )
        data.write_parquet(str(home / "results"))
        ended = time.time()
        rows = pq.read_table(home / "results").to_pylist()
        ray.shutdown()
        if sorted(row["path"] for row in rows) != sorted(paths):
            raise SystemExit(f"Ray labelled {len(rows)} of {len(paths)} photographs.")
        by_path = {row["path"]: row["probabilities"] for row in rows}
        _keep(out, np.array([by_path[path] for path in paths], dtype=np.float32))
        ready = max(row["ready"] for row in rows)
        return {"seconds": ended - ready, "start_up": ready}

    return contender


# -- the limit ---------------------------------------------------------------------------------------------------------------


def decoding(model: Path, files: list[Path], _: Path | None) -> dict[str, Any]:
    """The pipeline's own decoding and preparing, from bytes in memory: seconds an image on one core, for exact and for the others.

    `gpu`: seconds an image of the GPU's own decoder, where there is one.
    """
    from worker.classifying import engines

    size = json.loads((model / "info.json").read_text())["image_size"]
    data = [file.read_bytes() for file in files]
    found: dict[str, Any] = {}
    if engines.unpacks("fast"):
        engine = engines.load(model, "fast", files_argument().parent / "cache")
        for some in (data[: engine.batch], data):
            started = time.perf_counter()
            for at in range(0, len(some), engine.batch):
                engine.unpack(some[at : at + engine.batch])  # type: ignore[misc]
            found["gpu"] = (time.perf_counter() - started) / len(some)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for name in ("exact", "fast"):
        for some in (data[:WARM_UP], data):
            started = time.perf_counter()
            for picture in some:
                _pixels(picture, size, name)
            found[name] = (time.perf_counter() - started) / len(some)
    return {"seconds_an_image": found}


def _pixels(data: bytes, size: int, precision: str) -> np.ndarray:
    """Bytes of a file -> (S, S, 3) uint8, as a worker does it for a precision."""
    from shared.images import MAX_BYTES
    from worker.classifying.decoding import look

    return look(data, size, precision == "exact", MAX_BYTES)[0]


def forward(precision: str) -> Callable[[Path, list[Path], Path | None], dict[str, Any]]:
    """The engine alone, on mini-batches that lie ready, with all cores: seconds an image, or why there is no such engine."""

    def contender(model: Path, files: list[Path], out: Path | None) -> dict[str, Any]:
        from shared.errors import DarkroomError
        from worker.classifying.engines import load

        started = time.perf_counter()
        try:
            engine = load(model, precision, files_argument().parent / "cache")
        except DarkroomError as error:
            return {"missing": str(error)}
        load_seconds = time.perf_counter() - started
        pixels = np.stack([_pixels(file.read_bytes(), engine.image_size, precision) for file in files])
        batches = [engine.stack(list(pixels[i : i + engine.batch])) for i in range(0, len(pixels), engine.batch)]
        engine(batches[0])
        started = time.perf_counter()
        probabilities = [engine(batch) for batch in batches]
        seconds = time.perf_counter() - started
        _keep(out, np.concatenate(probabilities))
        return {"engine": engine.name, "load_seconds": load_seconds, "seconds_an_image": seconds / len(pixels)}

    return contender


CONTENDERS: dict[str, Callable[[Path, list[Path], Path | None], dict[str, Any]]] = {
    "predict": predict_loop,
    "get_preds_0": get_preds(0),
    "get_preds_2": get_preds(2),
    "get_preds_last": get_preds(2, channels_last=True),
    "ray_tasks": ray_data(prepares=False),
    "ray_actors": ray_data(prepares=True),
    "decode": decoding,
    "forward_exact": forward("exact"),
    "forward_fast": forward("fast"),
    "forward_int8": forward("int8"),
}


def _keep(out: Path | None, probabilities: np.ndarray) -> None:
    if out:
        np.save(out, probabilities.astype(np.float32))


def files_argument() -> Path:
    """The file that lists the photographs; what a contender has to write goes beside it."""
    return Path(sys.argv[3])


def main() -> None:
    """Run one contender and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    files = [Path(line) for line in args.files.read_text().splitlines()]
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints
        facts = CONTENDERS[args.name](args.model, files, args.out)
    print(json.dumps({"images": len(files), **facts}), flush=True)


if __name__ == "__main__":
    main()
