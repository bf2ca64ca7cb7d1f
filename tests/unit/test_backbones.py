import pytest
import timm
import torch
from safetensors.torch import save_file

from derma.backbones import WeightsError, load_backbone, stage_features
from derma.classifier import Classifier
from derma.states import save_state


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_backbones_of_all_kinds_give_features_of_every_stage(name):
    backbone = load_backbone(name, "none").eval()
    images = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        last, stages = backbone(images), stage_features(backbone, images)
    assert last.shape == (2, backbone.num_features) and stages.ndim == 2
    assert torch.equal(stages[:, -backbone.num_features :], last)  # the mean of the last stage, and more
    assert stages.shape[1] > 2 * backbone.num_features


def test_weights_come_from_a_file_or_a_run_without_the_last_layer(tmp_path):
    trained, file = timm.create_model("test_resnet"), tmp_path / "weights.safetensors"
    save_file({key: value.half() for key, value in trained.state_dict().items()}, file)
    trained.reset_classifier(0)
    classifier = Classifier("test_resnet", "none", frozen=True)
    save_state({"network": classifier.state_dict()}, tmp_path / "run" / "fold-0.safetensors")
    for weights, expected in ((file, trained.half().float()), (tmp_path / "run", classifier.backbone)):
        pairs = zip(load_backbone("test_resnet", str(weights)).parameters(), expected.parameters(), strict=True)
        assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in pairs)


def test_what_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:100])
    for name, weights, words in [
        ("test_resnet", "missing.safetensors", "missing.safetensors: no safetensors file .*; set DERMA_WEIGHTS"),
        ("test_resnet", tmp_path / "torn.safetensors", "torn.safetensors: no safetensors file"),
        ("test_convnext", file, "not the weights of test_convnext .* set DERMA_MODEL and DERMA_WEIGHTS to the same"),
        ("test_resnet", tmp_path, "holds no trained network, fold-0.safetensors; set DERMA_WEIGHTS to the folder"),
        ("lcnet_035", "imagenet", "No pretrained weights .* Set DERMA_WEIGHTS to a file of lcnet_035, or to 'none'"),
        ("resnet5O", "none", "timm cannot make 'resnet5O' .* did you mean resnet50"),
    ]:
        with pytest.raises(WeightsError, match=words):
            load_backbone(name, str(weights))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no network.")))
    with pytest.raises(WeightsError, match=r"could not be downloaded \(no network\); set DERMA_WEIGHTS to a .safet"):
        load_backbone("resnet50.tv_in1k", "imagenet")
