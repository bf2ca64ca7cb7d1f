import pytest
import timm
import torch
from torch import nn

from derma.gradcam import grad_cam


class Network(nn.Module):
    """A backbone, whose last stage has this name, and further layers."""

    def __init__(self, backbone, module, *layers):
        super().__init__()
        self.backbone, self.rest = backbone, nn.Sequential(*layers)
        backbone.feature_info = [{"module": module}]
        self.eval().requires_grad_(False)

    def forward(self, images):
        return self.rest(self.backbone(images))


def test_heat_lies_where_the_class_is_seen():
    images = torch.zeros(2, 3, 8, 8)
    images[:, 0, :4], images[:, 1, 4:] = 0.8, 0.4  # red above, green below
    backbone = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Dropout(0.9))
    backbone[0].weight.data = torch.eye(2, 3).view(2, 3, 1, 1)  # class 0 is the share of red, class 1 of green
    network = Network(backbone, "0", nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        heat = grad_cam(network, images, torch.tensor([0, 1]))
    assert heat == pytest.approx(images[[0, 1], [0, 1]].sign().numpy())
    assert not backbone[0]._forward_hooks
    assert grad_cam(network, images * 0, [0, 1]).max() == 0


def test_other_networks_have_no_maps():
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    for name, options in (("test_vit", {}), ("swin_tiny_patch4_window7_224", small)):  # tokens; channels last
        backbone = timm.create_model(name, num_classes=3, img_size=64, **options)
        network = Network(backbone, backbone.feature_info[-1]["module"])
        assert grad_cam(network, torch.zeros(2, 3, 64, 64), [0, 1]) == [None, None]
    backbone = timm.create_model("test_resnet", num_classes=3)  # some of timm's models name a module that is not there
    assert grad_cam(Network(backbone, "block"), torch.zeros(2, 3, 64, 64), [0, 1]) == [None, None]
    backbone.layer4.register_forward_hook(lambda module, inputs, output: (output,))  # others' stages return tuples
    backbone.global_pool.register_forward_pre_hook(lambda module, inputs: inputs[0])
    assert grad_cam(Network(backbone, "layer4"), torch.zeros(2, 3, 64, 64), [0, 1]) == [None, None]
