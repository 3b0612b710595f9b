"""Criteria from weights, against numpy over what every unit owns, written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.errors import ModelError, TargetError, UsageError
from secateur.passes import geometric_median
from secateur.passes.base import PassContext
from secateur.passes.criteria import criteria, score_units
from secateur.passes.scoring import Combine, Criterion, Normalize, Scores, Scoring, describe

from .criteria_models import SHAPES, Array, analysis, model, owned, samples, units, weights
from .pass_runs import build, normal

COMBINE: tuple[Combine, ...] = get_args(Combine)
WEIGHTS = ("l1", "l2", "fpgm", "lamp")


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    yield
    criteria.cache_clear()


def raw(found: Analysis, criterion: str, combine: Combine = "sum", **context: Any) -> Scores:
    return score_units(found, criterion, Scoring(PassContext(**context), combine), "none")


def distances(rows: Array) -> Array:
    """For every row the sum of its distances from all others, by the differences themselves."""
    result: Array = np.linalg.norm(rows[:, None] - rows, axis=2).sum(axis=1)
    return result


def joined(members: list[tuple[str, Array]], how: str) -> Array:
    """Scores of members as one."""
    made = [scores for role, scores in members if role == "producer"]
    given = np.stack(made if how == "producers" and made else [scores for _, scores in members])
    reduce: dict[str, Callable[..., Array]] = {"mean": np.mean, "max": np.max}
    result: Array = reduce.get(how, np.sum)(given, axis=0)
    return result


def expected(criterion: str, members: list[tuple[str, Array]], how: str) -> Array:
    """The score of every unit of a group from the rows that it owns."""

    def over(measure: Callable[[Array], Array]) -> Array:
        return joined([(role, measure(rows)) for role, rows in members], how)

    if criterion == "l1":
        return over(lambda rows: np.abs(rows).sum(axis=1))
    if criterion == "fpgm":
        return over(distances)
    squares = over(lambda rows: np.square(rows).sum(axis=1))
    if criterion == "l2":
        if how == "mean":
            return over(lambda rows: np.linalg.norm(rows, axis=1))
        return np.sqrt(squares)
    return np.array([n / sum(m for m in squares if m >= n) for n in squares])


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("criterion", WEIGHTS)
@pytest.mark.parametrize("name", SHAPES)
def test_scores_of_everything_that_a_unit_owns(name: str, criterion: str, combine: Combine) -> None:
    found = analysis(name)
    scores = raw(found, criterion, combine)
    groups = owned(name, weights(name))
    assert sum(len(members[0][1]) for members in groups.values()) == found.unit_count
    for (weight, axis), members in groups.items():
        own = units(found, weight, axis)
        if name == "heads":
            own = own[::4]
        own = own[: len(members[0][1])]
        np.testing.assert_allclose(scores[own], expected(criterion, members, combine), rtol=1e-5)


BROADCAST = "g (float[N,1] x) => (float[N,%s] y) { a = Add(x, p) b = Relu(a) y = %s }"


def test_vectors_count_where_a_unit_owns_nothing_else() -> None:
    p, w = normal(5), normal(5, 2, seed=1)
    bare = build(BROADCAST % ("1", "ReduceSum<keepdims=1>(b, i)"), p=p, i=np.array([1]))
    np.testing.assert_allclose(raw(secateur.analyze(bare), "l1"), np.abs(p), rtol=1e-6)
    read = secateur.analyze(build(BROADCAST % ("2", "MatMul(b, w)"), p=p, w=w))
    for combine in COMBINE:  # nothing produces: what consumes counts, the vector does not
        own = raw(read, "l2", combine)[units(read, "p", 0)]
        np.testing.assert_allclose(own, np.linalg.norm(w, axis=1), rtol=1e-6)


def test_a_constant_at_two_places_counts_for_the_units_of_both() -> None:
    """The uses of t are cut apart: each goes with the units of its own place."""
    text = """g (float[N,1] x) => (float[N,1] y) {
        a = Add(x, p)  b = Mul(a, t)  c = ReduceSum<keepdims=1>(b, i)
        d = Add(x, q)  e = Mul(d, t)  f = ReduceSum<keepdims=1>(e, i)  y = Add(c, f)
    }"""
    p, q, t = (normal(5, seed=k) for k in range(3))
    found = secateur.analyze(build(text, p=p, q=q, t=t, i=np.array([1])))
    for name, own in (("p", p), ("q", q)):
        scores = raw(found, "l1")[units(found, name, 0)]
        np.testing.assert_allclose(scores, np.abs(own) + np.abs(t), rtol=1e-6)


# ---- what scores do not depend on ---------------------------------------------------------------


@pytest.mark.parametrize("criterion", [*WEIGHTS, "activation"])
@pytest.mark.parametrize("name", ["residual", "grouped", "heads"])
def test_scores_move_with_the_channels(name: str, criterion: str) -> None:
    """Channels of the first group in another order, everywhere: the scores in that order."""
    w = weights(name)
    turn = {
        "residual": ([5, 3, 0, 1, 4, 2], {"w0": 0, "b0": 0, "w1": 1, "w2": 0, "w3": 1}),
        "grouped": ([3, 0, 2, 1, 7, 4, 6, 5], {"w0": 0}),
        "heads": ([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7], {"wq": 1, "wk": 1, "wv": 1, "wo": 0}),
    }
    order, axes = turn[name]
    turned = w | {k: np.take(w[k], order, axis) for k, axis in axes.items()}
    if name == "grouped":  # the same places of both groups
        turned["wg"] = w["wg"][:, order[:4]]
    before, after = analysis(name, w), analysis(name, turned)
    (first, axis) = next(iter(axes.items()))
    old, new = (
        raw(found, criterion, calibration=samples(name))[units(found, first, axis)]
        for found in (before, after)
    )
    np.testing.assert_allclose(new, old[order], rtol=1e-5)


@pytest.mark.parametrize("normalize", ["mean", "max", "sum", "gauss"])
@pytest.mark.parametrize("criterion", WEIGHTS)
def test_normalised_scores_do_not_depend_on_the_scale_of_a_group(
    criterion: str, normalize: Normalize
) -> None:
    """wa makes one group, wb another; all weights of the first are made larger."""
    w = weights("concat")
    grown = w | {"wa": 8 * w["wa"], "wc": np.concatenate([8 * w["wc"][:, :5], w["wc"][:, 5:]], 1)}
    small, large = (
        score_units(analysis("concat", arrays), criterion, normalize=normalize)
        for arrays in (w, grown)
    )
    np.testing.assert_allclose(large, small, rtol=1e-5, atol=1e-12)


def test_what_auto_means() -> None:
    found = analysis("norms")
    context = Scoring(PassContext(calibration=samples("norms")))
    for criterion in set(criteria().names()) - {"taylor"}:  # needs PyTorch
        none = score_units(found, criterion, context, "none")
        auto = score_units(found, criterion, context)
        kept = criterion in ("lamp", "bn-scale", "random", "reconstruction")
        means = [none[g.units].mean() for g in found.groups]
        scaled = none / np.array(means)[found.group_of_unit]
        np.testing.assert_allclose(auto, none if kept else scaled)


# ---- fpgm, lamp, random -------------------------------------------------------------------------


def test_distances_are_right_far_from_the_origin_and_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = np.random.default_rng(0).standard_normal((37, 5))
    wanted = distances(points)
    for moved in (points, points + 1e6, 1e160 * points, 1e-160 * points):
        scale = np.abs(moved - moved[0]).max() / np.abs(points - points[0]).max()
        for block in (1 << 22, 100, 1):
            monkeypatch.setattr(geometric_median, "BLOCK", block)
            got = geometric_median.distance_sums(moved.copy())
            np.testing.assert_allclose(got, wanted * scale, rtol=1e-8)


def test_equal_filters_are_closest_to_all_others() -> None:
    """Four equal filters among eight: each is at distance 0 from three of them."""
    w = weights("residual")
    w["w1"][1:4] = w["w1"][0]
    w["w2"][:, 1:4] = w["w2"][:, :1]
    found = analysis("residual", w)
    own = raw(found, "fpgm")[units(found, "w1", 0)]
    np.testing.assert_allclose(own[:4], own[0], rtol=1e-6)
    wanted = sum(distances(rows) for _, rows in owned("residual", w)["w1", 0])
    np.testing.assert_allclose(own, wanted, rtol=1e-6)


def test_units_with_more_coordinates_than_others() -> None:
    """The first of three channels is read twice: the others have zeros in its second place."""
    text = """g (float[N,3] x) => (float[N,2] y) {
        a = MatMul(x, u)  b = Gather<axis=1>(a, i)  y = MatMul(b, v)
    }"""
    u, v = normal(3, 3), normal(4, 2, seed=1)
    found = secateur.analyze(build(text, u=u, v=v, i=np.array([0, 0, 1, 2])))
    read = np.array([[*v[0], *v[1]], [*v[2], 0, 0], [*v[3], 0, 0]])
    wanted = distances(u.T) + distances(read)
    np.testing.assert_allclose(raw(found, "fpgm")[units(found, "u", 1)], wanted, rtol=1e-6)


def test_lamp_of_equal_and_of_zero_units() -> None:
    w = {k: np.zeros_like(v) for k, v in weights("concat").items()}
    w["wa"][0, 0], w["wa"][1:3, 0] = 2, 1
    found = analysis("concat", w)
    own = raw(found, "lamp")
    np.testing.assert_allclose(own[units(found, "wa", 0)], [1, 1 / 6, 1 / 6, 0, 0])
    assert not own[units(found, "wb", 0)].any()


def test_random_scores_follow_the_seed() -> None:
    found = analysis("residual")
    first = raw(found, "random", seed=1)
    assert np.array_equal(first, raw(found, "random", seed=1))
    assert not np.array_equal(first, raw(found, "random", seed=2))
    assert len(set(first)) == found.unit_count


# ---- bn-scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", COMBINE)
def test_scales_of_normalisations(combine: Combine) -> None:
    w = weights("norms")
    found = analysis("norms", w)
    scores = score_units(found, "bn-scale", Scoring(combine=combine))
    both = [("coupled", np.abs(w["ps"])), ("coupled", np.abs(w["qs"]))]
    np.testing.assert_allclose(scores[units(found, "w0", 0)], joined(both, combine), rtol=1e-6)
    bare = scores[units(found, "w1", 0)]
    assert bare.min() > scores[units(found, "w0", 0)].max(), "groups without a scale come last"
    norms = expected("l2", owned("norms", w)["w1", 0], "sum")
    assert np.array_equal(np.argsort(bare), np.argsort(norms))


def test_channels_with_small_scales_go_first() -> None:
    w = weights("norms")
    w["ps"], w["qs"] = (np.array([3, 0.1, 2, 0.2, 1, 4], np.float32) for _ in range(2))
    found = analysis("norms", w)
    plan = secateur.plan(found, ratio=0.25, criterion="bn-scale", scope="global")
    own, other = (plan.removed[units(found, k, 0)] for k in ("w0", "w1"))
    assert own.tolist() == [False, True, False, True, True, False] and not other.any()


FLAT = "(float[N,3] x) => (float[N,2] y) { a = MatMul(x, w) b = %s c = Relu(b) y = MatMul(c, v) }"
LONG = "(float[N,3,4] x) => (float[N,2,4] y) { a = Conv(x, w) b = %s c = Relu(b) y = Conv(c, v) }"


@pytest.mark.parametrize(
    ("text", "node"),
    [
        (FLAT, "LayerNormalization(a, s, t)"),
        (FLAT, "com.microsoft.SkipLayerNormalization(a, a, s, t)"),
        (LONG, "InstanceNormalization(a, s, t)"),
    ],
)
def test_other_normalisations_have_scales_too(text: str, node: str) -> None:
    shapes = ((3, 6), (6, 2)) if text == FLAT else ((6, 3, 1), (2, 6, 1))
    w, v = (normal(*shape) for shape in shapes)
    s, header = normal(6, seed=5), ', "com.microsoft": 1'
    found = secateur.analyze(build(f"g {text % node}", header=header, w=w, v=v, s=s, t=normal(6)))
    own = raw(found, "bn-scale")[units(found, "s", 0)]
    np.testing.assert_allclose(own, np.abs(s), rtol=1e-6)


def test_no_scale_at_all_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"no unit of this model owns one .*choose another") as e:
        raw(analysis("residual"), "bn-scale")
    assert "folded" in str(e.value) and "\n" not in str(e.value)


# ---- plug-ins and errors ------------------------------------------------------------------------


def added(criterion: Criterion) -> str:
    criteria().add("theirs", "their-package", lambda: criterion)
    return "theirs"


def test_a_criterion_of_one_parameter() -> None:
    def first(analysis: Analysis) -> Scores:
        return np.arange(1.0, analysis.unit_count + 1)

    found = analysis("concat")
    scores = score_units(found, added(first))
    np.testing.assert_allclose(scores[:5], np.arange(1, 6) / 3)
    np.testing.assert_allclose(scores[5:], np.arange(6, 10) / 7.5)


def test_a_criterion_of_two_parameters() -> None:
    @describe(needs_calibration=True, normalize="none")
    def loudness(analysis: Analysis, use: Scoring) -> Scores:
        assert use.combine == "max" and use.context.calibration is not None
        return np.full(analysis.unit_count, use.context.calibration["x"].size + use.context.seed)

    found, name = analysis("concat"), added(loudness)
    with pytest.raises(UsageError, match=r"'theirs' .* calibration data: give --calibration FILE"):
        score_units(found, name)
    scoring = Scoring(PassContext(seed=7, calibration=samples("concat")), "max")
    assert score_units(found, name, scoring).tolist() == [6 * 75 + 7] * 9


def test_a_parameter_with_a_default_is_the_criterion_s_own() -> None:
    def power(analysis: Analysis, exponent: int = 2) -> Scores:
        return np.full(analysis.unit_count, 3.0**exponent)

    def seeded(analysis: Analysis, scoring: Scoring | None = None) -> Scores:
        assert scoring is not None
        return np.full(analysis.unit_count, float(scoring.context.seed))

    found = analysis("concat")
    assert score_units(found, added(power), normalize="none").tolist() == [9] * 9
    criteria.cache_clear()
    scoring = Scoring(PassContext(seed=4))
    assert score_units(found, added(seeded), scoring, "none").tolist() == [4] * 9


@pytest.mark.parametrize(
    ("result", "words"),
    [([1.0], "one finite score for each of 9 units"), (np.full(9, np.nan), "one finite score")],
)
def test_scores_of_a_plugin_are_checked(result: npt.ArrayLike, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        score_units(analysis("concat"), added(lambda analysis: np.asarray(result)))


def test_a_criterion_that_fails_names_its_package() -> None:
    def broken(analysis: Analysis, scoring: Scoring) -> Scores:
        raise KeyError("two\nlines")

    with pytest.raises(UsageError, match=r"'theirs' of 'their-package' failed \(KeyError: 'two"):
        score_units(analysis("concat"), added(broken))


@pytest.mark.parametrize("criterion", WEIGHTS)
def test_weights_that_are_not_finite_are_named(criterion: str) -> None:
    w = weights("concat")
    w["wb"][0, 0] = np.nan
    with pytest.raises(ModelError, match="weight 'wb' holds NaN or infinity"):
        raw(analysis("concat", w), criterion)


def test_weights_whose_squares_overflow_are_said_to() -> None:
    w = weights("concat")
    w["wb"][0, 0] = 1e30
    with pytest.raises(ModelError, match="so large that their scores overflow"):
        raw(analysis("concat", w), "l2")
    assert np.isfinite(raw(analysis("concat", w), "l1")).all()


@pytest.mark.parametrize("criterion", ["l2", "fpgm", "bn-scale", "lamp", "random", "activation"])
def test_a_model_with_no_units_has_no_scores(criterion: str) -> None:
    found = secateur.analyze(build("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"))
    assert raw(found, criterion, calibration={"x": normal(2, 3)}).size == 0
    with pytest.raises(TargetError):
        secateur.plan(found, ratio=0.5, criterion=criterion, calibration={"x": normal(2, 3)})


@pytest.mark.parametrize("criterion", ["fpgm", "lamp", "bn-scale", "random", "activation"])
def test_pruned_by_each_with_a_certificate(criterion: str) -> None:
    result = secateur.run(
        model("norms"),
        f"prune{{ratio=0.5 criterion={criterion} combine=max normalize=gauss scope=global}}",
        calibration=samples("norms"),
        threads=1,
        bench=False,
    )
    assert result.certificate is not None and result.certificate.ok
    options = result.report["options"][0]
    assert (options["combine"], options["normalize"]) == ("max", "gauss")
    assert result.report["totals"]["parameters"]["after"] < 0.9 * sum(
        numpy_helper.to_array(t).size for t in model("norms").graph.initializer
    )
