"""Compare recipes by cross-validation on ISIC 2017; write docs/experiments.csv and the table of docs/experiments.md.

    python benchmarks/experiments.py --weights FOLDER        # all that are not finished on this machine
    python benchmarks/experiments.py --names "frozen ResNet50" "frozen DenseNet169"
    python benchmarks/experiments.py --table                 # the table from the CSV; nothing is trained

Each experiment executes skin_lesion_classification.ipynb on five folds of train and valid; the test split is not
predicted. An ensemble averages finished ones. An interrupted run goes on where it stopped.
"""

import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derma import scoring, tables
from derma.commands import Parser, run_main
from derma.settings import ROOT

NOTEBOOK = "skin_lesion_classification.ipynb"
TABLE, PAGE, RUNS = ROOT / "docs" / "experiments.csv", ROOT / "docs" / "experiments.md", ROOT / "models" / "experiments"
COMMON = {"data": "data/isic2017", "evaluate": "held_out", "folds": 5}
RESNET, EFFICIENTNET = "resnet50.tv_in1k", "tf_efficientnetv2_b0"
FROZEN = {"frozen": True, "image_size": 192}
# First stages on further images; docs/experiments.md has the commands.
FIRST = {"weights": f"models/published/{EFFICIENTNET}-first"}
FAST = {"weights": f"models/fast/{EFFICIENTNET}-first"}
RESNET_FIRST = {"weights": f"models/published/{RESNET}-first"}
TUNED, HEADS = "EfficientNetV2-B0, two stages, 192 px", "frozen EfficientNetV2-B0, two stages, 192 px"
LONG_TUNED, LONG_HEADS = f"{TUNED}, 15 and 8 epochs", f"{HEADS}, 15 epochs"
LARGE_TUNED = LONG_TUNED.replace("192", "224")
RESNET_TUNED = LONG_TUNED.replace("EfficientNetV2-B0", "ResNet50")
RESNET_HEADS = "frozen ResNet50, two stages, 192 px, 15 epochs"
HALF, LONG_HALF, RESNET_HALF = (f"{heads}, half size" for heads in (HEADS, LONG_HEADS, RESNET_HEADS))


class Experiment(NamedTuple):
    """A model, settings beyond :data:`COMMON`, and the experiment to compare with."""

    model: str
    settings: dict
    against: str = ""


class Ensemble(NamedTuple):
    """Experiments whose predictions are averaged, one that is named twice with twice the weight, and one to compare."""

    members: tuple[str, ...]
    against: str = ""


EXPERIMENTS = {
    "frozen ResNet50": Experiment(RESNET, FROZEN),
    "frozen DenseNet169": Experiment("densenet169.tv_in1k", FROZEN, "frozen ResNet50"),
    "frozen EfficientNetV2-B0": Experiment(EFFICIENTNET, FROZEN, "frozen ResNet50"),
    HEADS: Experiment(EFFICIENTNET, FROZEN | FAST, "frozen EfficientNetV2-B0"),
    HALF: Experiment(EFFICIENTNET, FROZEN | FAST | {"image_size": 96}, HEADS),
    f"{HEADS}, both sizes": Ensemble((HEADS, HALF), HEADS),
    TUNED: Experiment(
        EFFICIENTNET, {"lr_head": 1e-3, "lr_backbone": 3e-4, "image_size": 192, "epochs": 5} | FAST, HEADS
    ),
    f"{TUNED}, with heads": Ensemble((TUNED, HEADS), TUNED),
    f"{TUNED}, with heads at both sizes": Ensemble((TUNED, HEADS, HALF), f"{TUNED}, with heads"),
    LONG_HEADS: Experiment(EFFICIENTNET, FROZEN | FIRST, HEADS),
    LONG_HALF: Experiment(EFFICIENTNET, FROZEN | FIRST | {"image_size": 96}, LONG_HEADS),
    f"{LONG_HEADS}, both sizes": Ensemble((LONG_HEADS, LONG_HALF), LONG_HEADS),
    LONG_TUNED: Experiment(EFFICIENTNET, FIRST | {"image_size": 192}, TUNED),
    f"{LONG_TUNED}, with heads": Ensemble((LONG_TUNED, LONG_HEADS), f"{TUNED}, with heads"),
    f"{LONG_TUNED}, with heads at both sizes": Ensemble(
        (LONG_TUNED, LONG_HEADS, LONG_HALF), f"{TUNED}, with heads at both sizes"
    ),
    RESNET_HEADS: Experiment(RESNET, FROZEN | RESNET_FIRST, "frozen ResNet50"),
    RESNET_HALF: Experiment(RESNET, FROZEN | RESNET_FIRST | {"image_size": 96}, RESNET_HEADS),
    f"{RESNET_HEADS}, both sizes": Ensemble((RESNET_HEADS, RESNET_HALF), RESNET_HEADS),
    RESNET_TUNED: Experiment(RESNET, RESNET_FIRST | {"image_size": 192}, RESNET_HEADS),
    f"{RESNET_TUNED}, with heads at both sizes": Ensemble(
        (RESNET_TUNED, RESNET_HEADS, RESNET_HALF), f"{RESNET_HEADS}, both sizes"
    ),
    LARGE_TUNED: Experiment(EFFICIENTNET, FIRST | {"image_size": 224}, LONG_TUNED),
    "both, two stages, 192 and 224 px, networks twice": Ensemble(
        (LARGE_TUNED, LARGE_TUNED, LONG_HALF, RESNET_HEADS), f"{LONG_TUNED}, with heads at both sizes"
    ),
}


def variables(name: str, weights: str | None = None) -> dict[str, str]:
    """Return an experiment's environment, without its results; ``weights`` is a folder of weights files."""
    settings = COMMON | {"model": EXPERIMENTS[name].model} | EXPERIMENTS[name].settings
    values = {f"DERMA_{key.upper()}": str(value).lower() for key, value in settings.items()}
    file = f"{settings['model'].split('.')[0]}.safetensors"
    return {"DERMA_WEIGHTS": str(Path(weights).absolute() / file)} | values if weights else values


def command(name: str) -> str:
    """Return the line that repeats an experiment with the default weights."""
    if isinstance(EXPERIMENTS[name], Ensemble):
        files = [folder_of(each).relative_to(ROOT) / "held_out.csv" for each in EXPERIMENTS[name].members]
        return f"python get_results.py --ensemble {' '.join(map(str, files))}"
    shown = " ".join(f"{key}={value}" for key, value in variables(name).items())
    return f"{shown} python -m derma.execute {NOTEBOOK} executed.ipynb"


def folder_of(name: str) -> Path:
    """Return the folder of an experiment's run."""
    return RUNS / name.replace(", ", "-").replace(" ", "-")


def record_of(name: str) -> dict | None:
    """Return command, commit, date and minutes of a finished run with today's settings, or None."""
    file = folder_of(name) / "experiment.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    return record if record.get("command") == command(name) else None


def run(name: str, weights: str | None, commit: str) -> None:
    """Execute the notebook with an experiment's settings, unless that was done before."""
    if record_of(name):
        return
    print(f"{name} ...", flush=True)
    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DERMA_")}
    environment |= variables(name, weights) | {"DERMA_RESULTS": str(folder)}
    arguments, started = [sys.executable, "-m", "derma.execute", NOTEBOOK, folder / NOTEBOOK], time.perf_counter()
    with (folder / "log").open("a") as log:
        if subprocess.run(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log).returncode:
            raise SystemExit(f"{name}: the notebook failed; read {folder / 'log'}.")
    minutes = (time.perf_counter() - started) / 60
    record = {"command": command(name), "commit": commit, "date": str(date.today()), "minutes": minutes}
    (folder / "experiment.json").write_text(json.dumps(record))


def is_finished(name: str) -> bool:
    """Return whether an experiment's predictions are on this machine."""
    if isinstance(experiment := EXPERIMENTS.get(name), Ensemble):
        return all(map(is_finished, experiment.members))
    return name in EXPERIMENTS and record_of(name) is not None


def summary_of(name: str, table: pd.DataFrame) -> dict:
    """Return the record of a finished experiment; an ensemble's follows from its members' rows."""
    if isinstance(EXPERIMENTS[name], Experiment):
        return record_of(name)
    rows = table.loc[sorted(set(EXPERIMENTS[name].members))].sort_values("date", kind="stable")
    record = {"command": command(name), "commit": rows["commit"].iloc[-1], "date": rows["date"].iloc[-1]}
    return record | {"minutes": rows["minutes"].astype(float).sum()}


def predictions(name: str) -> pd.DataFrame:
    """Return the held-out predictions, joined with the truth."""
    if isinstance(EXPERIMENTS[name], Ensemble):
        return tables.average([predictions(each) for each in EXPERIMENTS[name].members])
    held_out = tables.read_table(folder_of(name) / "held_out.csv")
    return tables.join(held_out, tables.truth_from_ids(held_out))


def areas(joined: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the three AUCs, (3,), and those of resampled images, (resamples, 3)."""
    resampled = scoring.bootstrap_areas(joined, ["task_1", "task_2"])
    return np.array(scoring.score(joined)), np.column_stack([resampled, resampled.mean(axis=1)])


def difference(first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the difference of two experiments' AUCs, (3,), and those of resampled images, (resamples, 3).

    Each was trained with one seed: the interval knows nothing of how seeds differ, so it is rather too narrow.
    """
    pair = predictions(first), predictions(second)
    common = pair[0].index.intersection(pair[1].index)  # in one order, so both are resampled alike
    (a, drawn_a), (b, drawn_b) = (areas(each.loc[common]) for each in pair)
    return a - b, drawn_a - drawn_b


def intervals(column: str, values: np.ndarray, resampled: np.ndarray) -> dict[str, str]:
    """Return the columns of values, (3,), and of the middle 95 % of their resamples, (resamples, 3)."""
    parts = {"": values, **dict(zip(("_low", "_high"), np.quantile(resampled, (0.025, 0.975), axis=0)))}
    return {f"{column}_{k + 1}{part}": f"{row[k]:.4f}" for k in range(3) for part, row in parts.items()}


def row(name: str, record: dict, compared: bool) -> dict[str, str]:
    """Return the row of a finished experiment; ``compared``: with the one that it is against, which is finished too."""
    against, (values, resampled) = EXPERIMENTS[name].against, areas(predictions(name))
    result = record | {"against": against, "seeds": "1", "last_commit": "", "cv_auc_3_by_seed": f"{values[2]:.4f}"}
    result["minutes"] = f"{record['minutes']:.1f}"
    result |= intervals("cv_auc", values, resampled)
    return result | (intervals("difference", *difference(name, against)) if compared else {})


def write_tables() -> None:
    """Write the CSV, in which rows of unfinished experiments stay as they are, and the page's table."""
    table = pd.read_csv(TABLE, dtype=str, keep_default_na=False, index_col="experiment")
    for name in EXPERIMENTS:
        if is_finished(name):
            own = row(name, summary_of(name, table), is_finished(EXPERIMENTS[name].against))
            kept = table.loc[name].filter(like="test_auc").to_dict() if name in table.index else {}
            table.loc[name] = pd.Series(own | kept).reindex(table.columns, fill_value="")
    table.to_csv(TABLE)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split("<!-- table -->")[0], page.split("<!-- /table -->")[1]
    PAGE.write_text(f"{before}<!-- table -->\n{page_table()}\n<!-- /table -->{after}", encoding="utf-8")


def page_table() -> str:
    """Return the table of docs/experiments.md: the rows of docs/experiments.csv that today's code can repeat."""
    lines = ["| experiment | mean | melanoma | keratosis | gain [95 %], against |", "|---" * 5 + "|"]
    for each in pd.read_csv(TABLE).query("last_commit.isna()").itertuples():
        gain = f"{each.difference_3:+.3f} [{each.difference_3_low:+.3f}, {each.difference_3_high:+.3f}], {each.against}"
        means = [f"{value:.3f}" for value in (each.cv_auc_3, each.cv_auc_1, each.cv_auc_2)]
        cells = [each.experiment, *means, "" if np.isnan(each.difference_3) else gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(description="Compare recipes by cross-validation.")
    parser.add_argument("--names", nargs="+", default=EXPERIMENTS, choices=EXPERIMENTS, metavar="NAME")
    parser.add_argument("--weights", help="a folder of <model>.safetensors, as resnet50.safetensors")
    parser.add_argument("--table", action="store_true", help="write both tables, and train nothing")
    options = parser.parse_args()
    if options.table:
        return write_tables()
    commit = subprocess.check_output(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, text=True).strip()
    changed = subprocess.check_output(["git", "status", "--porcelain", "-uno", "--", ".", ":!docs"], cwd=ROOT)
    for name in options.names:
        if isinstance(EXPERIMENTS[name], Experiment):
            run(name, options.weights, commit + ("-dirty" if changed else ""))
        write_tables()


if __name__ == "__main__":
    run_main(main)
