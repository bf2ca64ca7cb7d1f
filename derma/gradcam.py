"""Grad-CAM: which places of an image a convolutional network bases a class on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def grad_cam(network: nn.Module, layer: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Return heat maps (N, H, W) in [0, 1] by Grad-CAM (Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391).

    Args:
        network: gives logits (N, classes); its parameters may be frozen.
        layer: a module of it with an output (N, C, h, w), best the last one.
        images: (N, 3, H, W), as the network takes them.
        targets: (N,) class indices to explain.

    Raises:
        ValueError: the layer's output is not a map, or the network does not use the layer.
    """
    maps = []

    def start_gradient(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if getattr(output, "ndim", None) != 4:
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"Grad-CAM needs a layer with an output (N, C, H, W), not {found}; choose another layer.")
        maps.append(output.detach().clone().requires_grad_())  # a leaf: neither images nor weights need a gradient
        return maps[-1].clone()  # which layers that work in place may change

    training = {module: module.training for module in network.modules()}
    hook = layer.register_forward_hook(start_gradient)
    try:
        with torch.enable_grad():
            logits = network.eval()(images)
            if not maps:
                raise ValueError("Grad-CAM needs a layer that the network uses; choose another layer.")
            chosen = logits.gather(1, torch.as_tensor(targets, device=logits.device).view(-1, 1)).sum()
            (gradient,) = torch.autograd.grad(chosen, maps[-1])
    finally:
        hook.remove()
        for module, mode in training.items():
            module.training = mode
    heat = (gradient.mean((2, 3), keepdim=True) * maps[-1].detach()).sum(1, keepdim=True).relu().float()
    heat = functional.interpolate(heat, images.shape[2:], mode="bilinear").squeeze(1)
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()
