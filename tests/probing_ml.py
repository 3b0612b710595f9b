"""Families of generated nodes of ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.probing_draw import Case, Draw, case
from tests.probing_runs import STRINGS, Array


def _case(
    op: str, inputs: Sequence[Array], fixed: Sequence[int] = (), outputs: int = 1, **attributes: Any
) -> Case:
    return case(op, inputs, 17, outputs, fixed, domain="ai.onnx.ml", **attributes)


def table(d: Draw) -> Array:
    return d.floats(d.number(2, 3), d.number(2, 5))


def elementwise(d: Draw) -> Case:
    op = d.pick(["Binarizer", "CategoryMapper", "LabelEncoder"])
    if op == "Binarizer":
        return _case(op, [table(d)], threshold=0.2)
    indices = d.rng.integers(0, 4, (3, 2))
    if op == "LabelEncoder":
        values = {"values_floats": [0.5, 3.0, -1.0], "default_float": 9.0}
        keys: dict[str, Any] = {"keys_int64s": [0, 1, 2], **values}
        return _case(op, [indices], **keys)
    words = np.array(STRINGS, object)[indices]
    return _case(op, [words], cats_strings=STRINGS[:3], cats_int64s=[5, 6, 7], default_int64=-1)


def per_feature(d: Draw) -> Case:
    x = table(d)
    count = d.pick([1, x.shape[1]])
    if d.flag():
        offset, scale = (d.floats(count).tolist() for _ in range(2))
        return _case("Scaler", [x], offset=offset, scale=scale)
    x[0, 0] = x[-1, -1] = -7
    values = d.floats(count).tolist()
    return _case("Imputer", [x], imputed_value_floats=values, replaced_value_float=-7.0)


def one_hot_encoder(d: Draw) -> Case:
    return _case("OneHotEncoder", [d.rng.integers(0, 4, (3, 2))], cats_int64s=[0, 1, 2], zeros=1)


def normalizer(d: Draw) -> Case:
    return _case("Normalizer", [table(d)], norm=d.pick(["MAX", "L1", "L2"]))


def feature_vectorizer(d: Draw) -> Case:
    x = table(d)
    parts = [x, d.floats(x.shape[0], d.number(1, 3))][: d.number(1, 2)]
    return _case("FeatureVectorizer", parts, inputdimensions=[p.shape[1] for p in parts])


def array_feature_extractor(d: Draw) -> Case:
    x = table(d)
    indices = d.rng.integers(0, x.shape[1], (1, d.number(1, 4)))
    known = (1,) if d.number(0, 2) else ()
    return _case("ArrayFeatureExtractor", [x, indices], known)


def linear(d: Draw) -> Case:
    x = table(d)
    count = d.number(1, 3)
    weights = {"coefficients": d.floats(count * x.shape[1]).tolist()}
    weights["intercepts"] = d.floats(count).tolist()
    if d.flag():
        return _case("LinearRegressor", [x], targets=count, **weights)
    count = max(count, 3)
    weights = {"coefficients": d.floats(count * x.shape[1]).tolist()}
    weights["intercepts"] = d.floats(count).tolist()
    return _case("LinearClassifier", [x], outputs=2, classlabels_ints=list(range(count)), **weights)


def vectors(d: Draw) -> Case:
    """Support vectors: two of them, or one for each of two classes."""
    x = table(d)
    attributes = {
        "kernel_type": d.pick(["LINEAR", "RBF"]),
        "kernel_params": [0.5, 0.0, 3.0],
        "coefficients": [1.0, -0.5],
        "rho": [0.1],
        "support_vectors": d.floats(2 * x.shape[1]).tolist(),
    }
    if d.flag():
        return _case("SVMRegressor", [x], n_supports=2, **attributes)
    classes = {"classlabels_ints": [0, 1], "vectors_per_class": [1, 1]}
    return _case("SVMClassifier", [x], outputs=2, **attributes, **classes)


def trees(d: Draw) -> Case:
    """One tree that looks at the second feature."""
    x = table(d)
    attributes: dict[str, Any] = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_values": [0.1, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
    }
    kind, op = d.pick([("target", "TreeEnsembleRegressor"), ("class", "TreeEnsembleClassifier")])
    attributes[f"{kind}_treeids"], attributes[f"{kind}_nodeids"] = [0, 0], [1, 2]
    attributes[f"{kind}_ids"], attributes[f"{kind}_weights"] = [0, 0], [1.5, -2.5]
    if kind == "target":
        return _case(op, [x], n_targets=1, **attributes)
    attributes["class_ids"] = [0, 1]
    return _case(op, [x], outputs=2, classlabels_int64s=[0, 1], **attributes)
