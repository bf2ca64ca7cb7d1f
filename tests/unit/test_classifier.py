import pytest
import torch

from derma.classifier import Classifier, load_classifier
from derma.states import save_state


@pytest.mark.parametrize("frozen", [False, True])
def test_it_classifies_bytes_and_is_loaded_from_what_a_run_leaves(frozen, tmp_path):
    classifier = Classifier("test_resnet", "none", frozen).eval()
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
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
