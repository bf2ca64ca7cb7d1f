"""Calibrate class probabilities: a temperature for confidence, and an offset for each class."""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

GOAL = 0.89  # the sensitivity for melanoma, out of fold, at which a threshold is chosen


@dataclass(frozen=True)
class Calibrator:
    """Calibrates class probabilities; see :func:`fit_calibrator`.

    Attributes:
        temperature: the logarithms of the probabilities are divided by it; above 1 where they are overconfident.
        offsets: one for each class, added to that; their sum is 0.
    """

    temperature: float
    offsets: list[float]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (N, K) of the given ones, (N, K) in [0, 1]."""
        return softmax(np.log(np.clip(probabilities, 1e-12, 1)) / self.temperature + np.array(self.offsets), axis=1)


def fit_calibrator(targets: np.ndarray, probabilities: np.ndarray) -> Calibrator:
    """Fit a temperature and the classes' offsets by maximum likelihood.

    Temperature scaling with a bias (Alexandari et al., 2020, https://arxiv.org/abs/1901.06852): the temperature
    corrects confidence (Guo et al., 2017, https://arxiv.org/abs/1706.04599), the offsets undo the class weights.

    Args:
        targets: (N,) class indices, of images that the network was not trained on; every class is present.
        probabilities: (N, K) of the same.
    """
    from scipy.optimize import minimize  # these take a while, and a prediction needs neither
    from sklearn.metrics import log_loss

    def fitted(values: np.ndarray) -> Calibrator:
        offsets = np.append(values[1:], 0.0)
        return Calibrator(float(np.exp(values[0])), (offsets - offsets.mean()).tolist())

    def loss(values: np.ndarray) -> float:
        return log_loss(targets, fitted(values)(probabilities), labels=range(probabilities.shape[1]))

    # A temperature within a factor of 20 of 1: perfect predictions would drive it to 0.
    bounds = [(-3.0, 3.0)] + [(-10.0, 10.0)] * (probabilities.shape[1] - 1)
    return fitted(minimize(loss, np.zeros(probabilities.shape[1]), bounds=bounds, method="L-BFGS-B").x)
