"""The data and the network: scikit-learn's handwritten digits, and what is fitted to them."""

# ruff: noqa: PLC0415 - importing scikit-learn takes seconds, and the demo has something to say first

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Array", "Digits", "train"]

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Digits:
    """The digits, and what a network that was fitted to some of them makes of all of them.

    Attributes
    ----------
    images : ndarray, shape (N, 8, 8), float32
        Pixels, from 0 to 1.
    labels : ndarray, shape (N,)
        Which digit each is.
    held_out : ndarray, shape (M,)
        Indices of the images that the network was not fitted to.
    weights : dict of str to ndarray
        The network.
    scores : ndarray, shape (N, 10), float32
        The probabilities that scikit-learn itself computes with it.
    predictions : ndarray, shape (N,)
        The digits that scikit-learn itself recognizes with it.
    """

    images: Array
    labels: Array
    held_out: Array
    weights: dict[str, Array]
    scores: Array
    predictions: Array


def train() -> Digits:
    """Fit a network to three quarters of the digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    data = load_digits()
    images = (data.images / 16).astype(np.float32)
    pixels = images.reshape(len(images), -1)
    fitted, held_out = train_test_split(
        np.arange(len(images)), test_size=0.25, stratify=data.target, random_state=0
    )
    network = MLPClassifier(
        hidden_layer_sizes=(64,), learning_rate_init=0.005, max_iter=400, tol=1e-3, random_state=0
    )
    network.fit(pixels[fitted], data.target[fitted])
    return Digits(
        images=images,
        labels=data.target,
        held_out=held_out,
        weights={
            "hidden": network.coefs_[0],
            "hidden_bias": network.intercepts_[0],
            "output": network.coefs_[1],
            "output_bias": network.intercepts_[1],
        },
        scores=network.predict_proba(pixels),
        predictions=network.predict(pixels),
    )
