import numpy as np
import pytest
import torch

from derma.classifier import Classifier, KernelHead, load_classifier
from derma.states import save_state


@pytest.mark.parametrize("frozen", [False, True])
def test_it_classifies_bytes_and_is_loaded_from_what_a_run_leaves(frozen, tmp_path):
    classifier = Classifier("test_resnet", "none", frozen).eval()
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    if frozen:
        classifier.head.fit(classifier.features(images.repeat(3, 1, 1, 1)), np.arange(12) % 3)
    logits = classifier(images)
    assert logits.shape == (4, 3)
    assert torch.equal(classifier.head(classifier.features(images)), logits)
    assert not frozen or torch.equal(classifier(classifier.features(images)), logits)  # features in place of images
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.head.parameters())
    assert any(parameter.grad is not None for parameter in classifier.backbone.parameters()) == (not frozen)

    settings = {"model": "test_resnet", "frozen": frozen}
    save_state({"settings": settings, "network": classifier.state_dict()}, tmp_path / "fold-0.safetensors")
    assert torch.equal(load_classifier(tmp_path / "fold-0.safetensors").eval()(images), logits)
    save_state({"network": {}}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a classifier, or of another version"):
        load_classifier(tmp_path / "other.safetensors")


def test_its_text_tells_what_it_started_from_and_its_head_fits(tmp_path):
    """The text decides whether a run is resumed: a first stage may have been trained again, in the same folder."""
    texts = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        first = Classifier("test_mambaout", "none", frozen=False)  # which gives more features than num_features says
        assert first(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
        save_state({"network": first.state_dict()}, tmp_path / "fold-0.safetensors")
        texts.add(repr(Classifier("test_mambaout", str(tmp_path), frozen=False)))
    assert len(texts) == 2


def test_a_kernel_head_separates_rings_and_balances_classes(monkeypatch):
    """No linear head could: each class is a ring around the same centre. One class is rare."""
    generator = np.random.default_rng(0)
    targets = generator.choice(3, 900, p=(0.05, 0.6, 0.35))
    angle, radius = generator.uniform(0, 2 * np.pi, 900), 1 + targets + generator.normal(0, 0.2, 900)
    points = torch.from_numpy(5 + np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)).float()
    head = KernelHead()
    head.fit(points[:600], targets[:600])
    with torch.autocast("cpu", torch.bfloat16):
        predicted = head(points[600:]).argmax(1).numpy()
    assert all((predicted == targets[600:])[targets[600:] == k].mean() > 0.9 for k in range(3))
    monkeypatch.setattr(KernelHead, "centres", 100)
    few = KernelHead()
    few.fit(points[:600], targets[:600])
    assert len(few.similar) == 100 and (few(points[600:]).argmax(1).numpy() == predicted).mean() > 0.95
