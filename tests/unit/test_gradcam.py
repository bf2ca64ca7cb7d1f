import pytest
import timm
import torch
from torch import nn

from derma.gradcam import grad_cam


def test_heat_lies_where_the_class_is_seen():
    images = torch.zeros(2, 3, 8, 8)
    images[:, 0, :4], images[:, 1, 4:] = 0.8, 0.4  # red above, green below
    rest = [nn.ReLU(inplace=True), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), *rest).requires_grad_(False)
    network[0].weight.data = torch.eye(2, 3).view(2, 3, 1, 1)  # class 0 is the share of red, class 1 of green
    network.eval()
    with torch.no_grad():
        heat = grad_cam(network, network[0], images, torch.tensor([0, 1]))
    assert heat == pytest.approx(images[[0, 1], [0, 1]].sign().numpy())
    assert not network[0]._forward_hooks
    assert grad_cam(network, network[0], images * 0, [0, 1]).max() == 0


def test_transformers_have_no_maps():
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    for name, options in (("test_vit", {}), ("swin_tiny_patch4_window7_224", small)):  # tokens; channels last
        network = timm.create_model(name, num_classes=3, img_size=64, **options).eval()
        layer = network.get_submodule(network.feature_info[-1]["module"])
        assert grad_cam(network, layer, torch.zeros(2, 3, 64, 64), [0, 1]) == [None, None]
        assert not layer._forward_hooks
