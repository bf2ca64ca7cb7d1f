"""Apply trained runs to new images.

    python -m derma.predict models/<run> IMAGES...               # files, folders, or a folder of class folders
    python -m derma.predict models/a models/b IMAGES... --out mean/predictions.csv
    python -m derma.predict models/<run> IMAGE --explain explained

Several runs are averaged, as ``get_results.py --ensemble`` averages them. The predictions are written as
``Id,task_1,task_2``. If every image lies in a class folder, so is the truth, and ``get_results.py`` can score them.
"""

import html
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice, takewhile
from pathlib import Path

# OpenMP's threads sleep while they wait: spinning, they hold up the threads that decode images. Read with torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from derma import tables
from derma.augmentation import views
from derma.backbones import best_precision
from derma.calibration import GOAL, Calibrator
from derma.classifier import load_classifier
from derma.commands import Parser, progress, run_main
from derma.dataset import CLASSES, LABELS, load_image, load_square, why_unreadable
from derma.files import write_json, write_text, write_together
from derma.gradcam import grad_cam
from derma.inputs import walk, why_no_file

RESEARCH = "This is research, not a medical device. Never use it to judge anyone's skin."
Reasons = list[tuple[Path, str]]  # files, each with the reason
LEGEND = (
    "The probabilities are calibrated. Suspicious means that the probability of melanoma reaches the threshold that "
    f"finds {GOAL:.0%} of the held-out melanomas."
)
RECORD = "predictions.json"
TITLE = "<title>Explained predictions</title>"  # what tells an own page, which may be replaced, from another
FEW = 20  # images: their predictions are printed
EXPLAINED = 320  # longer side of an explained image, in pixels
PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{title}
<style>
  body {{ font-family: system-ui, sans-serif; max-width: 1100px; margin: 0 auto; padding: 8px; }}
  main {{ display: flex; flex-wrap: wrap; gap: 16px; }}
  figure {{ margin: 0; width: min(100%, 520px); overflow-wrap: anywhere; }} img {{ max-width: 100%; }}
</style>
<h1>Explained predictions</h1>
<p><b>{research}</b></p>
<p>Left is the image; right, a Grad-CAM map of the first network. It is bright where the network's last feature map
supports the named class, the most probable one. The map is coarse: it shows where the network looked, not what it saw.
</p>
<p>{legend}</p>
<main>
{entries}
</main></html>
"""
ENTRY = """<figure><img src="{number:05}.png" alt="left: {name}; right: its Grad-CAM map">
<figcaption>{name}<br>{numbers}<br>Map for: {label}</figcaption></figure>"""


class RunError(ValueError):
    """A folder is not a finished run, or there are no images; the message is one sentence that says what to do."""


class TrainedRun:
    """A finished run of the classification notebook, ready to be applied to images.

    Args:
        folder: ``models/<run>``. All its networks are averaged.

    Attributes:
        size: side of the squares that the networks see, in pixels.
        networks: on the GPU if there is one.
        commit: of the code that trained it.
        calibrator, threshold: chosen on the run's held-out images; the threshold applies to calibrated probabilities.

    Raises:
        RunError: the folder is not a run, or it is not finished, damaged, or of another version.
    """

    def __init__(self, folder: str | os.PathLike):
        file = Path(folder, "metrics.json")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            settings, self.size, self.commit = about["settings"], int(about["test_size"]), about.get("commit")
            self.tta, self.batch_size = settings["tta"], int(settings["batch_size"])
            self.calibrator, self.threshold = Calibrator(**about["calibration"]), float(about["threshold"])
            files = [file.with_name(f"fold-{k}.safetensors") for k in range(max(1, settings["folds"]))]
            self.precision = best_precision() if settings["precision"] == "auto" else settings["precision"]
        except OSError:
            what = "not a trained run; name one first, models/<run>, then images"
            if _is_run(file.parent):
                what = "a run that is being trained or was interrupted; run its notebook to the end"
            raise RunError(f"{folder}: {what}.") from None
        except (KeyError, TypeError, ValueError) as error:
            what = f"not of a classifier, of another version, or damaged ({type(error).__name__}: {error})"
            raise RunError(f"{file}: {what}; name another run, or run its notebook again.") from None
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        try:
            networks = map(load_classifier, files)
            self.networks = [each.to(self.device, memory_format=torch.channels_last).eval() for each in networks]
        except ValueError as error:
            raise RunError(str(error)) from None

    def autocast(self) -> torch.autocast:
        """Return the context of the arithmetic that the networks were trained with."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None)

    @torch.inference_mode()
    def predict(self, images: torch.Tensor) -> np.ndarray:
        """Return calibrated class probabilities (N, 3) of images (N, 3, size, size), bytes: what ``results.csv`` holds.

        In another batch, an image's probabilities may differ in the last of seven digits, as float32 rounds.
        """
        images = images.to(self.device)
        with self.autocast():
            parts = [
                torch.stack([network(view).float().softmax(1) for view in views(images, self.tta)]).mean(0)
                for network in self.networks
            ]
        return self.calibrator(np.mean([part.cpu().double().numpy() for part in parts], axis=0))

    def predict_files(self, files: Iterable[Path]) -> tuple[list[Path], np.ndarray, Reasons]:
        """Return the files that can be read, their class probabilities (N, 3), and the others with the reasons.

        The memory in use depends on the batch size and not on the number of files.
        """
        read, refused, parts = [], [], [np.empty((0, len(CLASSES)))]

        def readable() -> Iterator[torch.Tensor]:
            for file, image, reason in _ahead(self._load, files, ahead=2 * self.batch_size):
                if image is None:
                    refused.append((file, reason))
                else:
                    read.append(file)
                    yield image

        images = readable()
        while batch := list(islice(images, self.batch_size)):
            parts.append(self.predict(torch.stack(batch)))
        return read, np.concatenate(parts), refused

    def _load(self, file: Path) -> tuple[Path, torch.Tensor | None, str | None]:
        """Return a file, and either its image, bytes (3, size, size), or why it cannot be used."""
        reason = why_unreadable(file)
        return file, None if reason else pil_to_tensor(load_square(file, self.size)), reason

    def __call__(self, file: str | os.PathLike) -> pd.Series:
        """Return the calibrated class probabilities of an image file; a ValueError if it cannot be used."""
        _, image, reason = self._load(Path(file))
        if image is None:
            raise ValueError(f"{file}: {reason}.")
        return pd.Series(self.predict(image.unsqueeze(0))[0], LABELS, name="probability")

    def explain(self, file: Path, target: int) -> np.ndarray | None:
        """Return the first network's Grad-CAM map (size, size) in [0, 1] of a class; None if the network has none."""
        image = pil_to_tensor(load_square(file, self.size)).unsqueeze(0).to(self.device)
        with self.autocast():
            return grad_cam(self.networks[0], image, torch.tensor([target]))[0]


def _ahead(function: Callable, items: Iterable, ahead: int) -> Iterator:
    """Yield the function's results in order; threads compute up to ``ahead`` of them in advance."""
    items = iter(items)
    with ThreadPoolExecutor() as pool:  # Pillow's decoders release the GIL
        waiting = deque(pool.submit(function, item) for item in islice(items, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result


def find_images(places: list[Path]) -> tuple[list[Path], Reasons]:
    """Return the images among files and folders, each folder's in the order of their paths, and what cannot be read.

    Raises:
        RunError: a place does not exist, or is a folder without images; or two images have one name.
    """
    found = {}
    for place in places:
        here = sorted(walk(place)) if place.is_dir() else [(place, why_no_file(place))]
        here = [(path, why) for path, why in here if why or path == place or path.suffix.lower() in tables.ENDINGS]
        if not here or not place.exists():
            what = "holds no images" if place.exists() else "no such file or folder"
            raise RunError(f"{place}: {what}; name image files, or folders of them.")
        found |= {os.path.abspath(path): (path, why) for path, why in here}  # noqa: PTH100 - once for each spelling
    strange = "a control character in its name, which no table can hold; rename it"
    reasons = [(path, why or (strange if tables.CONTROL.search(str(path)) else None)) for path, why in found.values()]
    files = [path for path, why in reasons if not why]
    if what := tables.why_ambiguous([str(file) for file in files]):
        raise RunError(what)
    return files, [(path, why) for path, why in reasons if why]


def load_runs(folders: list[Path]) -> tuple[list[TrainedRun], pd.DataFrame | None, float]:
    """Return runs, the mean of their held-out predictions, and the threshold chosen on these.

    Raises:
        RunError: see :class:`TrainedRun`; or the runs hold out different images.
        TableError: a ``held_out.csv`` is missing, of which a single run needs none, or damaged.
    """
    runs = [TrainedRun(folder) for folder in folders]
    if len(runs) == 1 and not (folders[0] / "held_out.csv").exists():
        return runs, None, runs[0].threshold
    parts = [tables.read_table(folder / "held_out.csv") for folder in folders]
    for folder, part in zip(folders, parts, strict=True):
        if set(part.values.index) != set(parts[0].values.index):
            raise RunError(
                f"{folder}: holds out other images than {folders[0]}, so no threshold can be chosen for their mean; "
                "predict with each, and average with get_results.py --ensemble."
            )
    truth = tables.truth_from_ids(parts[0])
    held_out = tables.average([tables.join(part, truth) for part in parts])
    if len(runs) == 1:
        return runs, held_out, runs[0].threshold
    from derma.scoring import threshold_for_sensitivity  # takes a while, and one run does not need it

    return runs, held_out, threshold_for_sensitivity(held_out["true_1"], held_out["task_1"], GOAL)


def predict_files(runs: list[TrainedRun], files: list[Path]) -> tuple[list[Path], np.ndarray, Reasons]:
    """Return what :meth:`TrainedRun.predict_files` does, for the mean of several runs."""
    parts, refused = [], []
    for run in runs:
        files, probabilities, unreadable = run.predict_files(progress(files, desc="predictions", unit="image"))
        parts.append(pd.DataFrame(probabilities, files))
        refused += unreadable
    return files, sum(part.loc[files].to_numpy() for part in parts) / len(parts), refused


def _print_table(files: list[Path], probabilities: np.ndarray, suspicious: np.ndarray) -> None:
    names = ["".join(sign if sign.isprintable() else "?" for sign in str(file)) for file in files]
    table = pd.DataFrame(probabilities, names, LABELS).assign(**{"": np.where(suspicious, "suspicious", "")})
    print(f"{RESEARCH}\n\n{table.to_string(float_format='{:.3f}'.format)}\n\n{LEGEND}\n")


def write_explanations(
    folder: Path, run: TrainedRun, files: list[Path], probabilities: np.ndarray, suspicious: np.ndarray
) -> None:
    """Write each image with its Grad-CAM map as ``<number>.png``, and ``index.html``, which shows them all."""
    from matplotlib import colormaps  # takes a while, and is not always needed

    entries, rows = [], list(zip(files, probabilities, suspicious, strict=True))
    for number, (file, row, marked) in enumerate(progress(rows, desc="explanations", unit="image"), start=1):
        image, heat, label = load_image(file, EXPLAINED), run.explain(file, row.argmax()), LABELS[row.argmax()]
        image.thumbnail((EXPLAINED, EXPLAINED))
        sheet = Image.new("RGB", (2 * image.width, image.height), "white")
        sheet.paste(image)
        if heat is None:
            label = "none: this network has no maps"
        else:  # the network saw all of the image, squashed to a square
            colours = Image.fromarray(np.uint8(255 * colormaps["inferno"](heat)[..., :3])).resize(image.size)
            sheet.paste(Image.blend(image, colours, 0.5), (image.width, 0))
        sheet.save(folder / f"{number:05}.png")
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in zip(LABELS, row, strict=True))
        numbers += "; <b>suspicious</b>" if marked else ""
        entries.append(ENTRY.format(number=number, name=html.escape(str(file)), numbers=numbers, label=label))
    page = PAGE.format(title=TITLE, research=RESEARCH, legend=LEGEND, entries="\n".join(entries))
    write_text(page, folder / "index.html")


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "metrics.json").exists() or any(folder.glob("fold-*.safetensors"))
    except OSError:  # a path that is too long
        return False


def _try_writing(file: Path) -> None:
    """Raise OSError now, and not after an hour, if this file cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.touch()
    part.unlink()


def _claim(out: Path) -> dict[str, list[str]]:
    """Return the hashes of what earlier calls wrote into the folder of ``out``, by file name.

    Raises:
        RunError: the folder holds other tables, or one that was changed since.
    """
    record, what = out.with_name(RECORD), "changed since, or not of derma.predict; give --out a folder of its own"
    try:
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
        written = {name: list(files[name]) for name in {out.name, "ground_truth.csv", "held_out.csv"} & files.keys()}
    except FileNotFoundError:
        written = {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{record}: {what}.") from None
    for file in sorted(out.parent.glob("*.csv")):
        if sha256(file.read_bytes()).hexdigest() not in written.get(file.name, []):
            raise RunError(f"{file}: {what}.")
    return written


def _write(out: Path, found: dict[str, pd.DataFrame | None], about: dict) -> None:
    """Write tables into the folder of ``out``, and a record of how they were made, which makes them replaceable."""
    written, record = _claim(out), out.with_name(RECORD)
    contents = {out.with_name(name): tables.csv_of(table) for name, table in found.items() if table is not None}
    hashes = {file.name: [sha256(content).hexdigest()] for file, content in contents.items()}
    # While files are replaced, the record knows old and new: a killed call leaves nothing that the next one refuses.
    write_json({"files": {name: hashes.get(name, []) + written.get(name, []) for name in hashes | written}}, record)
    for name in written.keys() - hashes.keys():  # a truth of other images
        out.with_name(name).unlink(missing_ok=True)
    write_together(contents)
    write_json(about | {"files": hashes}, record)


def predict(folders: list[Path], places: list[Path], out: Path, explain: Path | None) -> None:
    """Do what the command says; raises RunError, TableError or OSError."""
    files, refused = find_images(places)
    _try_writing(out)
    _claim(out)
    if explain is not None:
        _try_writing(explain / "index.html")
        if (explain / "index.html").exists() and TITLE not in (explain / "index.html").read_text("utf-8", "replace"):
            raise RunError(f"{explain / 'index.html'}: not of derma.predict; give --explain a folder of its own.")
    runs, held_out, threshold = load_runs(folders)
    read, probabilities, unreadable = predict_files(runs, files)
    refused += unreadable
    for file, reason in refused[: FEW if read else None]:
        print(f"{file}: {reason}", file=sys.stderr)
    if not read:
        raise RunError(f"{places[0]}: no image could be read; name other images.")
    suspicious = probabilities[:, 0] >= threshold
    labels = [file.absolute().parent.name for file in read]
    targets = np.array([CLASSES.index(name) if name in CLASSES else -1 for name in labels])
    results, truth = tables.tables_from_probabilities([file.as_posix() for file in read], targets, probabilities)
    outside = [file for file, target in zip(read, targets) if target < 0]
    found = {"held_out.csv": held_out, "ground_truth.csv": None if outside else truth, out.name: results}
    about = {"runs": folders, "commits": [run.commit for run in runs], "threshold": threshold}
    about |= {"images": len(read), "refused": refused}
    _write(out, found, about)
    if len(read) <= FEW:
        _print_table(read, probabilities, suspicious)
    print(f"Predictions of {len(read):,} images: {out}")
    if refused:
        print(f"Refused: {len(refused):,}, listed in {out.with_name(RECORD)}.", file=sys.stderr)
    if not outside and truth[["task_1", "task_2"]].nunique().max() == 2:
        print(f"To score them: python get_results.py {out}")
    if outside and (len(outside) < len(read) or any(map(Path.is_dir, places))):
        print(f"No truth is written: {outside[0]} is in none of the class folders {', '.join(CLASSES)}.")
    if explain is not None:
        write_explanations(explain, runs[0], read, probabilities, suspicious)
        print(f"{explain / 'index.html'}: each image with its Grad-CAM map.")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m derma.predict``; returns the exit code, 2 if nothing was predicted."""
    parser = Parser(prog="python -m derma.predict", description="Apply trained runs to new images.")
    parser.add_argument("paths", type=Path, nargs="+", metavar="RUN_OR_IMAGES", help="runs, then files and folders")
    default = "predictions/predictions.csv"
    parser.add_argument("--out", type=tables.output_file, default=default, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--explain", type=Path, metavar="DIR", help="write where the first network looked, as a page")
    options = parser.parse_args(arguments)
    folders = list(takewhile(_is_run, options.paths)) or options.paths[:1]
    places = options.paths[len(folders) :]
    if not places:
        parser.error(f"name images after {folders[-1]}: files, folders, or a folder of class folders")
    if options.out.suffix != ".csv":
        parser.error(f"--out {options.out} does not end in .csv")
    if _is_run(options.out.parent):
        parser.error(f"--out {options.out} lies in a run's folder; give it another one")
    try:
        predict(folders, places, options.out, options.explain)
    except (RunError, tables.TableError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or options.out}: {error.strerror or error}; name another place.", file=sys.stderr)
    else:
        return 0
    return 2


if __name__ == "__main__":
    run_main(main)
