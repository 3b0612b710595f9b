"""scikit-learn models by skl2onnx: multi-layer perceptrons, and models without channels.

Linear models, trees and neighbours must be refused with "nothing prunable" (exit code 4).

Needs scikit-learn and skl2onnx (tried with scikit-learn 1.9, skl2onnx 1.20).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .case import Case


def _classifier() -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((64, 32), max_iter=30, random_state=0)


def _binary() -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((48,), activation="tanh", max_iter=30, random_state=0)


def _regressor() -> Any:
    from sklearn.neural_network import MLPRegressor

    return MLPRegressor(
        hidden_layer_sizes=(64, 48, 32), activation="logistic", max_iter=30, random_state=0
    )


def _scaled() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), _classifier())


def _expanded() -> Any:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures

    return make_pipeline(MinMaxScaler(), PolynomialFeatures(2), PCA(16), _regressor())


def _voting() -> Any:
    from sklearn.ensemble import VotingClassifier
    from sklearn.linear_model import LogisticRegression

    members = [("mlp", _classifier()), ("linear", LogisticRegression())]
    return VotingClassifier(members, voting="soft", flatten_transform=False)


def _linear() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def _ridge() -> Any:
    from sklearn.linear_model import Ridge

    return Ridge()


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(10, random_state=0)


def _boosting() -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(n_estimators=10, random_state=0)


def _machine() -> Any:
    from sklearn.svm import SVC

    return SVC(random_state=0)


def _neighbours() -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(3)


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "mlp-classifier": (_classifier, 5),
    "mlp-binary": (_binary, 2),
    "mlp-regressor": (_regressor, 0),
    "scaler-mlp": (_scaled, 5),
    "polynomial-pca-mlp": (_expanded, 0),
    "voting-mlp": (_voting, 5),
    "logistic-regression": (_linear, 5),
    "ridge": (_ridge, 0),
    "random-forest": (_forest, 5),
    "gradient-boosting": (_boosting, 0),
    "svm": (_machine, 5),
    "neighbours": (_neighbours, 5),
}


def _export(build: Callable[[], Any], classes: int, path: Path) -> None:
    """Fits to random data of 12 features (``classes`` 0: a regression) and writes the model."""
    import warnings

    import numpy as np
    from skl2onnx import to_onnx

    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 12)).astype(np.float32)
    y = rng.integers(0, classes, 200) if classes else np.tanh(x @ rng.standard_normal(12))
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, y)
        options = {"zipmap": False} if classes else None
        proto = to_onnx(model, x[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3})
    path.write_bytes(proto.SerializeToString())


def cases() -> list[Case]:
    """``sklearn/…``, all with a dynamic batch."""
    return [
        Case(f"sklearn/{name}", partial(_export, build, classes))
        for name, (build, classes) in MODELS.items()
    ]
