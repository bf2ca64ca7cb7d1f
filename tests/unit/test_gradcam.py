import numpy as np
import pytest
import torch
from torch import nn

from derma.gradcam import grad_cam


class Scale(nn.Module):
    def forward(self, images):
        return images / 255


def test_heat_lies_where_the_class_is_seen():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, :4], images[:, 1, 4:] = 200, 100  # red above, green below
    rest = [nn.ReLU(inplace=True), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(Scale(), nn.Conv2d(3, 2, 1, bias=False), *rest).requires_grad_(False)  # takes bytes
    network[1].weight.data = torch.eye(2, 3).view(2, 3, 1, 1)  # class 0 is the share of red, class 1 of green
    network[3].eval()
    with torch.no_grad():
        heat = grad_cam(network, network[1], images, torch.tensor([0, 1]))
    expected = np.repeat([[1.0], [0.0]], 4, axis=0) * np.ones(8)
    assert heat == pytest.approx(np.stack([expected, expected[::-1]]))
    assert (network.training, network[3].training) == (True, False)  # as before
    assert not network[1]._forward_hooks and network[1].weight.grad is None
    assert grad_cam(network, network[1], images * 0, [0, 1]).max() == 0


def test_layers_without_a_map_are_refused():
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"output \(N, C, H, W\), not \(1, 3\); choose"):
        grad_cam(network, network[1], images, [0])
    with pytest.raises(ValueError, match="a layer that the network uses"):
        grad_cam(network, nn.ReLU(), images, [0])
    assert network.training and not network[1]._forward_hooks
