import numpy as np
import pytest
import torch
from torch import nn

from derma.gradcam import grad_cam


class Network(nn.Module):
    """Normalises bytes; channel 0 of its map is red, channel 1 green; class k sums channel k."""

    def __init__(self):
        super().__init__()
        self.maps, self.relu, self.drop = nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Dropout(0.9)
        self.maps.weight.data = torch.eye(2, 3).view(2, 3, 1, 1)

    def forward(self, images):
        return self.drop(self.relu(self.maps(images.float() / 255))).sum((2, 3))


@pytest.mark.parametrize("frozen", [False, True])
def test_heat_lies_where_the_class_is_seen(frozen):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, :4], images[:, 1, 4:] = 200, 100  # red above, green below
    network = Network().requires_grad_(not frozen)
    network.drop.eval()
    with torch.no_grad():
        heat = grad_cam(network, network.maps, images, torch.tensor([0, 1]))
    expected = np.repeat([[1.0], [0.0]], 4, axis=0) * np.ones(8)
    assert heat == pytest.approx(np.stack([expected, expected[::-1]]))
    assert (network.training, network.drop.training) == (True, False)  # as before
    assert not network.maps._forward_hooks and network.maps.weight.grad is None
    assert grad_cam(network, network.maps, images * 0, [0, 1]).max() == 0


def test_layers_without_a_map_are_refused():
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"output \(N, C, H, W\), not \(1, 3\); choose"):
        grad_cam(network, network[1], images, [0])
    with pytest.raises(ValueError, match="a layer that the network uses"):
        grad_cam(network, nn.ReLU(), images, [0])
    assert network.training and not network[1]._forward_hooks
