"""Print what docs/model_card.md and docs/leaks.md say of predictions, beyond what get_results.py prints.

python benchmarks/card.py results.csv data/isic2017
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derma import attributes, scoring, tables
from derma.commands import Parser, run_main
from derma.dataset import LABELS, DatasetError, LesionData
from derma.settings import ROOT


def main() -> None:
    parser = Parser(description="Print the model card's numbers.")
    parser.add_argument("predictions", type=Path)
    parser.add_argument("data", type=Path, help="a folder whose test split is predicted")
    options = parser.parse_args()
    try:
        data, predictions = LesionData(options.data), tables.read_table(options.predictions)
    except (DatasetError, tables.TableError, OSError) as error:
        parser.error(str(error))
    images = data.images.assign(scale=[attributes.scale_shown(Image.open(path)) for path in data.images["path"]])
    print(images.groupby(["split", "target"])["scale"].agg(["sum", "count", "mean"]).round(3).to_string())
    images = images[images["split"] == "test"]
    images.index = images["path"].map(tables.name_of)
    truth = tables.read_table(ROOT / "ground_truth.csv", truth=True)
    joined = tables.join(predictions, truth).loc[images.index]
    targets, probabilities = images["target"].to_numpy(), scoring.three_classes(joined)
    predicted = probabilities.argmax(1)
    print(classification_report(targets, predicted, target_names=LABELS, digits=3))
    print(pd.DataFrame(confusion_matrix(targets, predicted), LABELS, LABELS).to_string())
    print("AUC of nevus:", round(scoring.delong(targets == 1, probabilities[:, 1]).value, 3))
    print(attributes.auc_by_group(list(images["path"]), targets, probabilities).round(3).T.to_string())
    missed = images.loc[(targets == 0) & (predicted == 2), "scale"]
    print(f"melanomas predicted as keratosis: {missed.sum()} of {len(missed)} show a scale")
    leaks = pd.read_csv(ROOT / "docs" / "leaks.csv")
    leaked = leaks.loc[leaks["splits"].str.contains("test"), ["first", "second"]].to_numpy().ravel()
    kept = joined[~joined.index.isin([tables.name_of(name) for name in leaked])]
    print(f"without {len(joined) - len(kept)} leaked images:", *np.round(scoring.score(kept), 3))


if __name__ == "__main__":
    run_main(main)
