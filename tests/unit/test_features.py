import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torchvision.transforms import v2

from derma.augmentation import views
from derma.classifier import Classifier
from derma.dataset import LesionData, LesionImages, make_loader
from derma.features import compute_features
from derma.run import seed_everything


def test_features_are_computed_once_and_again_for_changed_images(data_folder, tmp_path, monkeypatch):
    seed_everything(0)
    classifier, accelerator = Classifier("test_resnet", "none", frozen=True), Accelerator(cpu=True)

    def compute(tta=True):
        images = LesionImages(LesionData(data_folder).split("valid"), 64, v2.ToImage())
        return images, compute_features(classifier, images, tta, accelerator, tmp_path / "run", batch_size=3)

    images, features = compute()
    with torch.inference_mode():
        expected = torch.stack([classifier.features(view)[0] for view in views(images[5][0].unsqueeze(0), True)])
    assert features.values.shape[:2] == (7, 8)
    assert torch.allclose(features.values[5], expected, atol=1e-4)
    assert (features.targets == images.targets).all() and features.ids == images.ids

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "features", lambda *_: pytest.fail("computed again"))
        assert torch.equal(compute()[1].values, features.values)
    first, second = sorted((data_folder / "valid" / "nevus").glob("*.jpg"))[:2]
    shutil.copy(second, first)
    assert not torch.equal(compute()[1].values, features.values)
    assert compute(tta=False)[1].values.shape[1] == 1
    before = compute()[1].values
    classifier.mean += 9  # another model's normalisation, with the same weights
    assert not torch.equal(compute()[1].values, before)

    ((values, targets),) = make_loader(features.subset(np.array([4, 0])), 5)
    assert torch.equal(values, features.values[[4, 0]]) and targets.tolist() == features.targets[[4, 0]].tolist()
