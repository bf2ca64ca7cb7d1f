"""Grad-CAM: which places of an image a convolutional network bases a class on."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def grad_cam(network: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray | list[None]:
    """Return heat maps (N, S, S) in [0, 1] by Grad-CAM (Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391).

    Args:
        network: in evaluation mode, gives logits (N, classes); its parameters may be frozen. Its ``backbone`` is a
            model of timm. If the last stage is no single module with an output (N, C, h, w), such as a vision
            transformer's, there is no map: a list of N None is returned.
        images: (N, 3, S, S), as the network takes them.
        targets: (N,) class indices to explain.
    """
    maps, layers = [], dict(network.backbone.named_modules())
    layer = layers.get(network.backbone.feature_info[-1]["module"], nn.Identity())

    def start_gradient(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if getattr(output, "ndim", 0) != 4 or output.shape[2] != output.shape[3]:  # (N, tokens, C), (N, H, W, C)
            return None  # leaves the output as it is
        maps.append(output.detach().clone().requires_grad_())  # a leaf: neither images nor weights need a gradient
        return maps[-1].clone()  # which layers that work in place may change

    with layer.register_forward_hook(start_gradient), torch.enable_grad():
        logits = network(images)
        if not maps:
            return [None] * len(images)
        chosen = logits.gather(1, torch.as_tensor(targets, device=logits.device).view(-1, 1)).sum()
        (gradient,) = torch.autograd.grad(chosen, maps[-1])
    heat = (gradient.mean((2, 3), keepdim=True) * maps[-1].detach()).sum(1, keepdim=True).relu().float()
    heat = functional.interpolate(heat, images.shape[2:], mode="bilinear").squeeze(1)
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()
