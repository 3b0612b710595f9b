"""The classical operators of ai.onnx.ml on tensors: rows are samples, columns are features.

Their weights are attributes: a list with one number for every feature is cut with its feature.
Operators on maps (CastMap, DictVectorizer, ZipMap) have no axes and no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .base import Couple, Exactness, Site, rule
from .indexing import kept_entries, link_selected, moved
from .movement import concatenate

if TYPE_CHECKING:
    from ..restated import Restated

_FEATURES = "features are told by their numbers"


def _ml(
    *ops: str, restate: Callable[[Restated], None] | None = None, exactness: Exactness = "exact"
) -> Callable[[Couple], Couple]:
    return rule(*ops, family="ml", domain="ai.onnx.ml", restate=restate, exactness=exactness)


# -- feature by feature -----------------------------------------------------------------------


@_ml("Binarizer", "CategoryMapper", "LabelEncoder")
def elementwise(site: Site) -> None:
    """Every element by itself."""
    site.link_axes(site.x, site.y)


_PER_FEATURE = ("offset", "scale", "imputed_value_floats", "imputed_value_int64s")


def _restate_lists(node: Restated) -> None:
    keep = node.keep(0, node.input_rank(0) - 1)
    for name in _PER_FEATURE:
        values = node.numbers(name)
        if len(values) == keep.size > 1:
            node.set_numbers(name, np.array(values)[keep])


@_ml("Imputer", "Scaler", restate=_restate_lists)
def per_feature(site: Site) -> None:
    """Every element by itself, with the numbers of its feature; one number is for all."""
    site.link_axes(site.x, site.y)
    if site.x.rank > 2:  # which axis holds the features is then left open
        site.pin_all(_FEATURES)


@_ml("OneHotEncoder")
def one_hot_encoder(site: Site) -> None:
    """A new last axis with one place for every category."""
    x, y = site.x, site.y
    for index in range(x.rank):
        site.link(x.axis(index), y.axis(index))
    site.pin(y.axis(-1), "one-hot positions")


@_ml("Normalizer", exactness="depends")
def normalizer(site: Site) -> None:
    """Every row over a sum, to which zeros add nothing, or over its largest value."""
    last = site.x.rank - 1
    site.link_axes(site.x, site.y)
    if site.string("norm", "MAX") == "MAX":
        site.inexact([(0, last)], [(0, last)])
    else:
        site.sink(0, last)


# -- movement ---------------------------------------------------------------------------------


def _restate_dimensions(node: Restated) -> None:
    sizes = [node.new_size(k, 1) for k in range(node.inputs)]
    node.set_numbers("inputdimensions", np.array(sizes))


@_ml("FeatureVectorizer", restate=_restate_dimensions)
def feature_vectorizer(site: Site) -> None:
    """The columns of all inputs one after the other."""
    sizes = tuple(o.shape[-1] for o in site.inputs if o is not None)
    matrices = all(o is not None and o.rank == 2 for o in site.inputs)
    if matrices and site.integers("inputdimensions") == sizes:
        concatenate(site, site.inputs)
    else:
        site.pin_all("columns that are filled up or cut off")


def _restate_features(node: Restated) -> None:
    keep, indices = node.keep(0, node.input_rank(0) - 1), node.values(1)
    if indices is not None and not keep.all():
        keeps = [node.keep(1, index) for index in range(node.input_rank(1))]
        node.want(1, kept_entries(moved(indices, keep), keeps).astype(indices.dtype))


@_ml("ArrayFeatureExtractor", restate=_restate_features)
def array_feature_extractor(site: Site) -> None:
    """Columns by their numbers, as Gather on the last axis."""
    x, y, indices = site.x, site.y, site.inputs[1]
    assert indices is not None
    if x.rank > 1:
        for index in range(x.rank - 1):
            site.link(x.axis(index), y.axis(index))
    else:
        site.pin(y.axis(0), "an axis of size 1")
    for axis in indices.axes[:-1]:
        site.pin(axis, "a list of indices")
    if not indices.rank:
        for axis in (x.axis(-1), y.axis(-1)):
            site.pin(axis, "one column by its number")
        return
    site.link(indices.axis(-1), y.axis(-1))
    value = site.value(1)
    if value is None:
        site.pin(x.axis(-1), "looked up with indices computed at run time")
    else:
        lists = [(y.axis(-1), indices.rank - 1)]
        link_selected(site, x.axis(-1), lists, value, x.shape[-1])


# -- models -----------------------------------------------------------------------------------


def _restate_coefficients(node: Restated) -> None:
    keep = node.keep(0, node.input_rank(0) - 1)
    table = np.array(node.numbers("coefficients")).reshape(-1, keep.size)
    node.set_numbers("coefficients", table[:, keep].reshape(-1))


@_ml("LinearClassifier", "LinearRegressor", restate=_restate_coefficients)
def linear(site: Site) -> None:
    """A product with the coefficients, an attribute with one row for every class or target."""
    _link_samples(site)
    site.sink(0, site.x.rank - 1)


@_ml(
    *("SVMClassifier", "SVMRegressor"),
    *("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
)
def stored_features(site: Site) -> None:
    """Features are compared with numbers that the model stores."""
    _link_samples(site)
    site.pin(site.x.axis(-1), _FEATURES)


def _link_samples(site: Site) -> None:
    for output in site.outputs:
        if output is None:
            continue
        if site.x.rank > 1:
            site.link(site.x.axis(0), output.axis(0))
        for axis in output.axes[1 if site.x.rank > 1 else 0 :]:
            site.pin(axis, "classes and targets are told by their numbers")
