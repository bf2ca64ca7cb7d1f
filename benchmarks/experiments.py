"""Measure what each ingredient of the recipe buys, by cross-validation, and write experiments.csv.

    python benchmarks/experiments.py data/isic2017 --list
    python benchmarks/experiments.py data/isic2017 --weights FOLDER      # all that are not yet on file
    python benchmarks/experiments.py data/isic2017 --names frozen "frozen, two layers"
    python benchmarks/experiments.py data/isic2017 --test --names "tuned DenseNet169, answers at 240 px, with heads"
    python benchmarks/experiments.py --differences                       # from what is on file; nothing is trained

Each experiment is one execution of skin_lesion_classification.ipynb with DERMA_EVALUATE=held_out: train and valid
together in five folds, pictures of one photograph in one fold, three seeds (one for large
networks trained whole), the last epoch kept. Of the test split nothing is used but to leave out training pictures that
leak into it. A row's numbers come from the predictions for the pictures held out, which stay in models/experiments/; a
row's command repeats it. With --test, which is for an experiment that was chosen by these numbers, the networks then
answer for the test split too, and the row says what that gave.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from derma import scoring, tables  # noqa: E402 - the package is not installed, it lies beside this folder
from derma.dataset import CLASSES  # noqa: E402

NOTEBOOK, TABLE, KEPT = "skin_lesion_classification.ipynb", ROOT / "experiments.csv", ROOT / "models" / "experiments"
COMMON = {"evaluate": "held_out", "folds": 5, "seeds": 3, "kept_epoch": "last"}
FROZEN = {"model": "densenet169", "frozen": True, "image_size": 224, "batch_size": 256, "epochs": 8}
FROZEN_192 = FROZEN | {"image_size": 192, "epochs": 15}
HEAD = FROZEN | {"head_layers": 2}
ONE_VIEW = HEAD | {"tta": False, "epochs": 30}  # an eighth of the features to compute
BLOCKS = "features.denseblock1,features.denseblock2,features.denseblock3"
# Trained whole, 15 networks in 11 to 13 minutes on two cores.
SMALL = {"model": "resnet18", "image_size": 96, "epochs": 3, "tta": False}
LARGE = {"model": "densenet169", "image_size": 192, "epochs": 8, "seeds": 1}  # 90 minutes on two cores for each seed
HEADS = {"pooled_layers": BLOCKS, "head_epochs": 8, "average_head": True}
HEAD_FIRST = LARGE | {"epochs": 5} | HEADS
HEADS_BESIDE = HEADS | {"start_from_head": False}
RESAMPLES = 2000


class Experiment(NamedTuple):
    """Settings beside :data:`COMMON`, and the name of the experiment from which they differ in one thing.

    A frozen backbone is one thing with what suits it: larger batches, more epochs, features computed once and thus not
    augmented, and more seeds, since they cost next to nothing.
    """

    settings: dict
    against: str | None = None


EXPERIMENTS = {
    "frozen": Experiment(FROZEN),
    "frozen, two layers": Experiment(HEAD, "frozen"),
    "frozen, pooled layers": Experiment(FROZEN | {"pooled_layers": BLOCKS}, "frozen"),
    "frozen, larger rate": Experiment(HEAD | {"lr_head": 3e-3}, "frozen, two layers"),
    "frozen, balanced sampling": Experiment(HEAD | {"balance": "sampling"}, "frozen, two layers"),
    "frozen, augmented views": Experiment(HEAD | {"augmented_views": 4}, "frozen, two layers"),
    "frozen, 192 px": Experiment(FROZEN_192),
    "frozen, 192 px, two layers": Experiment(FROZEN_192 | {"head_layers": 2}, "frozen, 192 px"),
    "frozen, 192 px, three layers": Experiment(FROZEN_192 | {"head_layers": 3}, "frozen, 192 px"),
    "one view": Experiment(ONE_VIEW),
    "one view, 128 px": Experiment(ONE_VIEW | {"image_size": 128}, "one view"),
    "one view, 160 px": Experiment(ONE_VIEW | {"image_size": 160}, "one view"),
    "one view, 192 px": Experiment(ONE_VIEW | {"image_size": 192}, "one view"),
    "one view, ResNet50": Experiment(ONE_VIEW | {"model": "resnet50"}, "one view"),
    "one view, ResNet18": Experiment(ONE_VIEW | {"model": "resnet18"}, "one view"),
    "one view, middle blanked": Experiment(ONE_VIEW | {"blank": 0.6}, "one view"),
    "one view, one layer": Experiment(ONE_VIEW | {"head_layers": 1}, "one view"),
    # Pooled layers are standardised, and come with their maxima: the last one alone, for how much that does by itself.
    "one view, last layer pooled": Experiment(
        ONE_VIEW | {"head_layers": 1, "pooled_layers": "features.norm5"}, "one view, one layer"
    ),
    "one view, pooled layers": Experiment(
        ONE_VIEW | {"head_layers": 1, "pooled_layers": BLOCKS}, "one view, one layer"
    ),
    "one view, smaller rate": Experiment(ONE_VIEW | {"lr_head": 3e-4}, "one view"),
    "one view, constant rate": Experiment(ONE_VIEW | {"schedule": "constant"}, "one view"),
    "one view, no warm-up": Experiment(ONE_VIEW | {"warmup_epochs": 0}, "one view"),
    "one view, no balance": Experiment(ONE_VIEW | {"balance": "none"}, "one view"),
    "one view, average of weights": Experiment(ONE_VIEW | {"ema": 0.99}, "one view"),
    "small": Experiment(SMALL),
    "small, eight views": Experiment(SMALL | {"tta": True}, "small"),  # next to it, to share its networks
    "small, frozen": Experiment(SMALL | {"frozen": True, "batch_size": 256, "epochs": 30}, "small"),
    "small, tuned from layer4": Experiment(SMALL | {"tuned_from": "layer4", "precompute": False}, "small"),
    "small, no augmentation": Experiment(SMALL | {"augmentation": "none"}, "small"),
    "small, light augmentation": Experiment(SMALL | {"augmentation": "light"}, "small"),
    "small, mixup and CutMix": Experiment(SMALL | {"augmentation": "mixed"}, "small"),
    "small, constant rate": Experiment(SMALL | {"schedule": "constant"}, "small"),
    "small, larger rate": Experiment(SMALL | {"lr_backbone": 3e-4}, "small"),
    "small, smaller rate": Experiment(SMALL | {"lr_backbone": 3e-5}, "small"),
    "small, balanced sampling": Experiment(SMALL | {"balance": "sampling"}, "small"),
    "small, average of weights": Experiment(SMALL | {"ema": 0.95}, "small"),
    "tuned DenseNet169": Experiment(LARGE, "frozen, 192 px"),
    "tuned DenseNet169, one view": Experiment(LARGE | {"tta": False}, "tuned DenseNet169"),
    "tuned DenseNet169, answers at 240 px": Experiment(LARGE | {"test_size": 240}, "tuned DenseNet169"),
    "tuned DenseNet169, answers at 240 px, with heads": Experiment(
        LARGE | {"test_size": 240} | HEADS_BESIDE, "tuned DenseNet169, answers at 240 px"
    ),
    "tuned DenseNet169, head first": Experiment(HEAD_FIRST),
}


def variables(name: str, data: str, weights: str | None) -> dict[str, str]:
    """Return the environment of an experiment; ``weights`` is a folder of weights files, or None."""
    settings = COMMON | EXPERIMENTS[name].settings
    if weights:
        settings["weights"] = Path(weights) / f"{settings['model']}.safetensors"
    values = {"data": data, **settings}
    return {
        f"DERMA_{key.upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in values.items()
    }


def command(name: str) -> str:
    """Return the line that repeats an experiment, without the place of the weights.

    For the test split's numbers, the same line follows with ``DERMA_EVALUATE=test``, and trains nothing.
    """
    shown = variables(name, "data/isic2017", None)
    return " ".join(f"{key}={value}" for key, value in shown.items()) + f" make run NOTEBOOKS={NOTEBOOK}"


def folder_of(name: str) -> Path:
    return KEPT / name.replace(", ", "-").replace(" ", "-")


def networks_of(name: str) -> dict:
    """Return what an experiment's networks depend on; experiments that have it in common share what was trained."""
    settings = COMMON | EXPERIMENTS[name].settings
    heads_first = settings.get("head_epochs") and settings.get("start_from_head", True)
    if settings.get("frozen") or settings.get("tuned_from") or heads_first:
        return settings
    apart = {"tta", "test_size", *(HEADS_BESIDE if settings.get("head_epochs") else ())}
    return {key: value for key, value in settings.items() if key not in apart}


def on_file(name: str) -> bool:
    """Return whether an experiment was made on this machine, by the command that it has today."""
    file = folder_of(name) / "metrics.json"
    return file.exists() and json.loads(file.read_text()).get("command") == command(name)


def execute(own: dict[str, str], folder: Path) -> None:
    """Execute the notebook with these variables; the results, the notebook and a log go to the folder."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("DERMA_")}
    folder.mkdir(parents=True, exist_ok=True)
    own = own | {"DERMA_RESULTS": str(folder / "results.csv")}
    with (folder / "log").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "derma.execute", NOTEBOOK, str(folder / NOTEBOOK)],
            cwd=ROOT, env=others | own, stdout=log, stderr=log, check=True,
        )  # fmt: skip


def current_commit() -> str:
    """Return the commit, with ``-dirty`` where a file has been changed since, but for the table itself and figures."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", "--short=7", "HEAD"], text=True).strip()
    changed = subprocess.check_output(
        [*git, "status", "--porcelain", "-uno", "--", ".", f":!{TABLE.name}", ":!images"], text=True
    )
    return commit + ("-dirty" if changed else "")


def run(
    name: str, data: str, weights: str | None, test: bool = False, shared: bool = False, keep: bool = False
) -> None:
    """Execute the notebook; keep what it has left. An interrupted one goes on where it stopped.

    Args:
        name: of the experiment.
        data: the data folder.
        weights: a folder of weights files, or None for torchvision's.
        test: let the networks answer for the test split too.
        shared: they were trained by the experiment before.
        keep: let them stay for the next experiment, which has the same.
    """
    own, made, kept = variables(name, data, weights), ROOT / "models" / Path(data).name, folder_of(name)
    for old in (made / "held_out.csv", made / "metrics.json"):
        old.unlink(missing_ok=True)
    started, commit = time.perf_counter(), current_commit()
    execute(own, kept)
    elapsed = (time.perf_counter() - started) / 60
    about = json.loads((made / "metrics.json").read_text())
    about |= {
        "command": command(name),
        "commit": commit,
        # Of one that was interrupted only the rest was timed: then at least what its epochs took.
        "whole_minutes": max(about["minutes"], elapsed + (about["minutes"] if shared else 0)),
    }
    (kept / "metrics.json").write_text(json.dumps(about, indent=2) + "\n")
    for file in ("held_out.csv", "history.csv"):
        shutil.copy(made / file, kept)
    if test:  # from the checkpoints
        execute(own | {"DERMA_EVALUATE": "test"}, kept / "test")
        shutil.copy(made / "metrics.json", kept / "test")
    for pattern in (
        "*checkpoint*",
        "answers-*",
        "best-*",
        "first_head-*",
    ):  # gigabytes, and held_out.csv is what was wanted
        for old in [] if keep else made.glob(pattern):
            old.unlink()


def predictions(name: str) -> pd.DataFrame:
    """Return the predictions for the pictures held out, in columns ``seed/task_1`` and so on, and the truth."""
    table = pd.read_csv(folder_of(name) / "held_out.csv").set_index(["Id", "seed"])
    wide = table[[CLASSES[0], CLASSES[2]]].set_axis(["task_1", "task_2"], axis=1).unstack("seed")
    wide.columns = [f"{seed}/{task}" for task, seed in wide.columns]
    truth = table["truth"].groupby("Id").first()
    for category, label in ((1, CLASSES[0]), (2, CLASSES[2])):
        wide[f"true_{category}"] = (truth == label).astype(float)
    return wide


def areas(joined: pd.DataFrame, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return the AUCs of every seed, (seeds, 2), and those of resampled pictures, (resamples, seeds, 2)."""
    columns = sorted(c for c in joined if "task_" in c and c.startswith(prefix) and (prefix or c[0].isdigit()))
    values = [roc_auc_score(joined[f"true_{column[-1]}"], joined[column]) for column in columns]
    resampled = scoring.bootstrap_areas(joined, columns, RESAMPLES)
    return np.reshape(values, (-1, 2)), resampled.reshape(RESAMPLES, -1, 2)


def difference(first: str, second: str) -> dict[int, scoring.Comparison]:
    """Compare two experiments: AUCs averaged over seeds, from resamples of the pictures and of each one's seeds.

    The interval thus says how the difference might have come out with other pictures and other seeds. With three seeds
    it knows little of these; it is rather too narrow than too wide.
    """
    both = predictions(first).join(predictions(second).filter(like="task_").add_prefix("other "), how="inner")
    rng = np.random.default_rng(0)
    values, resampled = [], []
    for prefix in ("", "other "):
        value, drawn = areas(both, prefix)
        chosen = rng.integers(value.shape[0], size=(RESAMPLES, value.shape[0], 1))
        values.append(value.mean(0))
        resampled.append(np.take_along_axis(drawn, chosen, axis=1).mean(1))
    found, spread = values[0] - values[1], resampled[0] - resampled[1]
    return {
        1: scoring.bootstrap_test(found[0], spread[:, 0]),
        2: scoring.bootstrap_test(found[1], spread[:, 1]),
        3: scoring.bootstrap_test(found.mean(), spread.mean(1)),
    }


def row(name: str) -> dict:
    """Return an experiment's row of the table."""
    about = json.loads((folder_of(name) / "metrics.json").read_text())
    values, resampled = areas(predictions(name))
    result = {
        "experiment": name, "against": EXPERIMENTS[name].against or "", "date": about["date"],
        "commit": about["commit"], "seeds": len(values), "minutes": round(about["whole_minutes"], 1),
    }  # fmt: skip
    three, spread = [*values.T, values.mean(1)], resampled.mean(1)
    for category, (value, drawn) in enumerate(zip(three, [*spread.T, spread.mean(1)], strict=True), 1):
        interval = scoring.percentile_interval(value.mean(), drawn)
        result |= {f"cv_auc_{category}": round(interval.value, 4)}
        result |= {f"cv_auc_{category}_{end}": round(getattr(interval, end), 4) for end in ("low", "high")}
    result["cv_auc_3_by_seed"] = " ".join(f"{value:.4f}" for value in three[2])
    other = EXPERIMENTS[name].against
    if other and on_file(other):
        for category, compared in difference(name, other).items():
            each = compared.difference
            result |= {f"difference_{category}": round(each.value, 4)}
            result |= {f"difference_{category}_{end}": round(getattr(each, end), 4) for end in ("low", "high")}
    return result | test_scores(folder_of(name) / "test") | {"command": command(name)}


def test_scores(folder: Path) -> dict:
    """Return the columns of the test split, with DeLong's intervals; empty for all that were not chosen."""
    if not (folder / "metrics.json").exists():
        return {}
    truth = tables.read_table(folder / "ground_truth.csv", truth=True)
    result = {}
    for category, area in scoring.report(tables.join(tables.read_table(folder / "results.csv"), truth)).areas.items():
        result |= {f"test_auc_{category}": round(area.value, 4)}
        result |= {f"test_auc_{category}_{end}": round(getattr(area, end), 4) for end in ("low", "high")}
    return result


def write_table() -> pd.DataFrame:
    """Write experiments.csv, in the order of :data:`EXPERIMENTS`: from all that is in models/, and else as it was.

    Rows of experiments that were made elsewhere stay, as long as their commands and comparisons are today's.
    """
    # As text, so that a row made elsewhere stays as it is; a commit such as 1234567 is no number.
    before = pd.DataFrame(columns=["experiment", "against", "command"])
    if TABLE.exists():
        before = pd.read_csv(TABLE, dtype=str, keep_default_na=False)
    rows = []
    for name in EXPERIMENTS:
        if on_file(name):
            rows.append(row(name))
        else:
            today = {"experiment": name, "against": EXPERIMENTS[name].against or "", "command": command(name)}
            rows += before[(before[list(today)] == pd.Series(today)).all(axis=1)].to_dict("records")
    for name in sorted(set(before["experiment"]) - {each["experiment"] for each in rows}):
        print(f"{name}: taken out of {TABLE.name}, since its command, or what it is compared with, is not today's.")
    pd.DataFrame(rows, columns=None if rows else before.columns).to_csv(TABLE, index=False)
    return pd.read_csv(TABLE, dtype={"commit": str})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what each ingredient buys.")
    parser.add_argument("data", nargs="?", default="data/isic2017", help="the data folder")
    parser.add_argument("--names", nargs="+", default=[], help="of experiments; by default all that are not on file")
    parser.add_argument("--weights", help="a folder of {resnet18,resnet50,densenet169}.safetensors; else torchvision's")
    parser.add_argument("--test", action="store_true", help="score the one that was chosen, which --names, on test too")
    parser.add_argument("--list", action="store_true", help="print the experiments and their commands")
    parser.add_argument("--differences", action="store_true", help="write experiments.csv anew, and train nothing")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"there is no experiment '{unknown[0]}'; --list names them")
    if options.test and len(options.names) != 1:
        parser.error("--test is for one experiment, the chosen one; give it by --names")
    if options.list:
        print(*(f"{name}: {command(name)}" for name in EXPERIMENTS), sep="\n")
        return
    names = options.names or [name for name in EXPERIMENTS if not on_file(name)]
    shared = False
    for name, following in [] if options.differences else zip(names, [*names[1:], None], strict=True):
        print(f"{name} ...", flush=True)
        keep = following is not None and networks_of(following) == networks_of(name)
        run(name, options.data, options.weights, options.test, shared, keep)
        shared = keep
        write_table()
    shown = write_table()
    print(shown.filter(regex="^experiment$|^(cv|test)_auc_.$|^difference_3").to_string(index=False))


if __name__ == "__main__":
    main()
