"Statistics against closed forms, published values and other algorithms."

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from rlpapers.core.stats import (
    Interval,
    bootstrap,
    bootstrap_band,
    fisher,
    holm,
    iqm,
    kaplan_meier,
    logrank,
    newcombe,
    paired_permutation,
    power_fisher,
    power_two_proportions,
    sign_test,
    trimmed_mean,
    wilson,
)

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
scores = st.lists(finite, min_size=1, max_size=12)
pvalues = st.lists(st.floats(0, 1), min_size=1, max_size=12)
quick = settings(max_examples=50, deadline=None)


# --- means


@quick
@given(scores)
def test_iqm_is_the_mean_of_the_sorted_middle(x):
    cut = len(x) // 4
    assert_allclose(iqm(x), np.mean(sorted(x)[cut : len(x) - cut]), atol=1e-6)


@quick
@given(scores, finite, st.floats(0.1, 10))
def test_iqm_moves_with_the_data(x, shift, scale):
    assert_allclose(iqm(np.array(x) * scale + shift), iqm(x) * scale + shift, atol=1e-4)


@quick
@given(st.lists(st.floats(0, 1e6), min_size=5, max_size=20), st.integers(0, 2))
def test_trimmed_mean_agrees_with_scipy(x, k):
    expected = stats.trim_mean(x, (k + 1e-9) / len(x))
    assert_allclose(trimmed_mean(x, k), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "missing, expected", [(0, 550), (1, 550), (2, 550), (3, "inf")]
)
def test_trimmed_mean_counts_nan_as_never(missing, expected):
    x = np.arange(100.0, 1001, 100)
    x[len(x) - missing :] = np.nan
    assert trimmed_mean(np.roll(x, 3), k=2) == float(expected)


# --- bootstrap


def by_hand(x, n_boot, seed, level=0.95):
    "The same bootstrap in plain loops (Agarwal et al. 2021): runs redrawn per task."
    draw = np.random.default_rng(seed).integers(len(x), size=(n_boot, *x.shape))
    means = []
    for b in range(n_boot):
        cols = [x[draw[b, :, k], k] for k in range(x.shape[1])]
        means.append(stats.trim_mean(np.concatenate(cols), 0.25))
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2])


@pytest.mark.parametrize("shape", [(5, 1), (10, 3), (3, 7)])
def test_bootstrap_equals_plain_loops(shape):
    x = np.random.default_rng(7).normal(size=shape)
    i = bootstrap(x, n_boot=300, seed=3)
    assert_allclose([i.low, i.high], by_hand(x, 300, 3), rtol=1e-12)
    assert_allclose(i.value, iqm(x))
    assert i.n == shape[0]


def test_bootstrap_of_two_runs_is_the_exact_distribution():
    # two values: each resample has 0, 1 or 2 of the second, with 1/4, 1/2, 1/4
    i = bootstrap([0.0, 1.0], "mean", level=0.4)
    assert (i.low, i.value, i.high) == (0.5, 0.5, 0.5)
    i = bootstrap([0.0, 1.0], "mean", level=0.9)
    assert (i.low, i.high) == (0.0, 1.0)


def test_bootstrap_agrees_with_scipy():
    x = np.random.default_rng(0).exponential(size=40)
    ours = bootstrap(x, "mean", n_boot=9999)
    ci = stats.bootstrap((x,), np.mean, method="percentile").confidence_interval
    assert_allclose(ours[1:3], ci, atol=0.03)


@pytest.mark.parametrize("stat", ["iqm", "mean", "median"])
def test_named_statistics_equal_functions(stat):
    f = {"iqm": iqm, "mean": np.mean, "median": np.median}[stat]
    x = np.random.default_rng(1).normal(size=(6, 2))
    assert_allclose(bootstrap(x, stat, n_boot=200), bootstrap(x, f, n_boot=200))


def test_bootstrap_is_repeatable_and_chunks_do_not_matter(monkeypatch):
    x = np.random.default_rng(1).normal(size=(6, 2))
    one = bootstrap(x, n_boot=500)
    assert one == bootstrap(x, n_boot=500) != bootstrap(x, n_boot=500, seed=1)
    monkeypatch.setattr("rlpapers.core.stats._CHUNK", 84)
    assert one == bootstrap(x, n_boot=500)


def test_band_is_the_bootstrap_of_each_point(monkeypatch):
    y = np.random.default_rng(2).normal(size=(8, 5))
    mid, low, high = bootstrap_band(y, n_boot=300, seed=4)
    for t in range(5):
        i = bootstrap(y[:, t], n_boot=300, seed=4)
        assert_allclose([mid[t], low[t], high[t]], i[:3], rtol=1e-12)
    monkeypatch.setattr("rlpapers.core.stats._CHUNK", 4800)
    assert_allclose(bootstrap_band(y, n_boot=300, seed=4), (mid, low, high))


def test_coverage_of_the_bootstrapped_mean():
    rng, hit = np.random.default_rng(0), 0
    for _ in range(400):
        i = bootstrap(rng.normal(size=30), "mean", n_boot=200, seed=1)
        hit += i.low <= 0 <= i.high
    assert 0.90 <= hit / 400 <= 0.98  # nominal 0.95, three standard errors 0.033


@quick
@given(scores, st.sampled_from(["iqm", "mean", "median"]))
def test_bootstrap_stays_within_the_data(x, stat):
    i = bootstrap(x, stat, n_boot=100)
    if len(x) == 1:
        assert (i.low, i.high) == (-math.inf, math.inf)
    else:
        slack = 1e-9 * (1 + max(map(abs, x)))
        assert min(x) - slack <= i.low <= i.high <= max(x) + slack


@pytest.mark.parametrize("x", [[], np.empty((0, 3)), 3.0, [1, np.nan], [1, np.inf]])
def test_bootstrap_refuses_what_it_cannot_use(x):
    with pytest.raises(ValueError, match="x "):
        bootstrap(x)


@pytest.mark.parametrize(
    "kw", [{"level": 1.0}, {"level": 0}, {"n_boot": 10}, {"stat": "mod"}]
)
def test_bootstrap_names_the_bad_setting(kw):
    with pytest.raises(
        ValueError, match=f"{next(iter(kw))}.*{next(iter(kw.values()))}"
    ):
        bootstrap([1.0, 2.0], **kw)


# --- rates


def wilson_by_formula(k, n, z=1.959963984540054):
    p, c = k / n, z * z / n
    mid = (p + c / 2) / (1 + c)
    half = z * math.sqrt(p * (1 - p) / n + c / n / 4) / (1 + c)
    return mid - half, mid + half


@quick
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_its_formula(kn):
    i = wilson(*kn)
    assert_allclose(i[1:3], wilson_by_formula(*kn), atol=1e-9)
    assert 0 <= i.low <= i.value <= i.high <= 1
    mirror = wilson(kn[1] - kn[0], kn[1])
    assert_allclose(i.low, 1 - mirror.high, atol=1e-9)


@pytest.mark.parametrize("n", [5, 10, 20])
def test_wilson_coverage_by_enumeration(n):
    p = np.linspace(0.02, 0.98, 97)
    ends = [wilson(k, n) for k in range(n + 1)]
    pmf = stats.binom.pmf(np.arange(n + 1)[:, None], n, p)
    hit = np.array([(i.low <= p) & (p <= i.high) for i in ends])
    cover = (pmf * hit).sum(axis=0)
    assert 0.94 < cover.mean() < 0.97 and cover.min() > 0.82


@pytest.mark.parametrize(
    "args, low, high",  # Newcombe 1998, table II, method 10
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_published_intervals(args, low, high):
    assert_allclose(newcombe(*args)[1:3], [low, high], atol=6e-5)


def test_newcombe_is_antisymmetric():
    a, b = newcombe(8, 10, 3, 12), newcombe(3, 12, 8, 10)
    assert_allclose([a.value, a.low, a.high], [-b.value, -b.high, -b.low])
    assert a.n == 10


def test_fisher_published_values():
    assert fisher(10, 10, 8, 10) == pytest.approx(0.4737, abs=1e-4)
    assert fisher(5, 5, 4, 5) == pytest.approx(1.0)
    assert fisher(3, 4, 1, 4) == pytest.approx(34 / 70)  # the lady tasting tea
    assert fisher(3, 4, 1, 4, "greater") == pytest.approx(17 / 70)


@pytest.mark.parametrize("k, n", [(-1, 5), (6, 5), (1.5, 5), (0, 0), (0, 2.5)])
def test_counts_are_refused(k, n):
    for f in (
        wilson,
        lambda k, n: fisher(k, n, 1, 2),
        lambda k, n: newcombe(1, 2, k, n),
    ):
        with pytest.raises(ValueError, match="must be a whole number"):
            f(k, n)


# --- power


@pytest.mark.parametrize(
    "p1, p2, power, n",  # R 4: power.prop.test(p1=, p2=, power=)$n
    [(0.80, 0.95, 0.8, 75.1), (0.50, 0.75, 0.9, 76.7), (0.50, 0.60, 0.8, 387.3)],
)
def test_power_agrees_with_r(p1, p2, power, n):
    assert power_two_proportions(p1, p2, power=power) == math.ceil(n)
    assert power_two_proportions(p2, p1, n=math.ceil(n)) >= power
    assert power_two_proportions(p1, p2, n=math.floor(n)) < power


@quick
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(2, 500))
def test_power_grows_with_n(p1, p2, n):
    if abs(p1 - p2) > 1e-3:
        now, more = (power_two_proportions(p1, p2, n=m) for m in (n, n + 1))
        assert 0 <= now <= more <= 1


def test_power_at_the_ends():
    assert power_two_proportions(0.0, 1.0, n=10) == 1.0
    assert power_two_proportions(0.0, 1.0, n=1) == 0.0
    for bad in [{}, {"n": 5, "power": 0.8}, {"power": 1.0}, {"n": 0}]:
        with pytest.raises(ValueError):
            power_two_proportions(0.5, 0.6, **bad)
    with pytest.raises(ValueError, match="must differ, got 0.5"):
        power_two_proportions(0.5, 0.5, n=5)
    with pytest.raises(ValueError, match="p2 must lie"):
        power_two_proportions(0.5, 1.5, n=5)


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_power_of_fisher_by_enumeration(side):
    n1, n2, p1, p2 = 6, 5, 0.9, 0.2
    total = sum(
        stats.binom.pmf(a, n1, p1) * stats.binom.pmf(b, n2, p2)
        for a, b in itertools.product(range(n1 + 1), range(n2 + 1))
        if fisher(a, n1, b, n2, side) <= 0.05
    )
    assert power_fisher(p1, p2, n1, n2, alternative=side) == pytest.approx(total)


def test_fisher_keeps_its_level():
    assert all(power_fisher(p, p, 10) <= 0.05 for p in (0.1, 0.5, 0.8))


# --- paired tests


def flips(d, alternative):
    "Exact sign-flip p-value, all patterns."
    means = [
        np.mean(np.multiply(s, d)) for s in itertools.product((1, -1), repeat=len(d))
    ]
    means, seen, eps = np.array(means), np.mean(d), 1e-9 * (1 + np.abs(d).max())
    up, down = np.mean(means >= seen - eps), np.mean(means <= seen + eps)
    p = {"greater": up, "less": down, "two-sided": min(1, 2 * min(up, down))}
    return p[alternative]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=8),
    st.sampled_from(["two-sided", "greater", "less"]),
)
def test_paired_permutation_is_exact_for_few_runs(d, side):
    p = paired_permutation(d, np.zeros(len(d)), side)
    assert p == pytest.approx(flips(np.array(d, float), side))


def test_paired_permutation_of_many_runs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 40), rng.normal(size=40)
    p = paired_permutation(a, b, "greater")
    assert p == paired_permutation(a, b, "greater")  # same seed, same patterns
    assert p == pytest.approx(
        stats.ttest_rel(a, b, alternative="greater").pvalue, abs=0.01
    )


def test_sign_test_closed_forms():
    assert sign_test([1] * 9 + [-1]) == pytest.approx(11 / 1024)
    assert sign_test([1] * 9 + [-1], "less") == pytest.approx(1023 / 1024)
    assert sign_test([0.1, 5, 0, 3], "two-sided") == pytest.approx(2 / 8)
    # McNemar of 45 gained and 28 lost
    assert sign_test([1] * 45 + [-1] * 28) == pytest.approx(stats.binom.sf(44, 73, 0.5))


@pytest.mark.parametrize("f", [paired_permutation, sign_test, fisher, logrank])
def test_alternatives_are_checked(f):
    args = {
        paired_permutation: ([1, 2], [0, 0]),
        sign_test: ([1, 2],),
        fisher: (1, 2, 1, 2),
        logrank: ([1, 2], [1, 1], [2, 3], [1, 1]),
    }[f]
    with pytest.raises(ValueError, match="alternative must be one of.*bigger"):
        f(*args, alternative="bigger")


# --- families


@given(pvalues)
def test_holm_properties(p):
    q, p = holm(p), np.array(p)
    assert (q >= p).all() and (q <= 1).all()
    assert (q <= np.minimum(1, p * len(p)) + 1e-15).all()  # never worse than Bonferroni
    order = np.argsort(p, kind="stable")
    assert (np.diff(q[order]) >= 0).all()
    assert_allclose(holm(p[::-1]), q[::-1])


@given(pvalues, st.floats(0.01, 0.2))
def test_holm_rejects_as_the_stepwise_rule_does(p, alpha):
    rejected, m = set(), len(p)
    for i, k in enumerate(np.argsort(p, kind="stable")):
        if p[k] * (m - i) > alpha:
            break
        rejected.add(int(k))
    assert {i for i, q in enumerate(holm(p)) if q <= alpha} == rejected


@pytest.mark.parametrize("p", [[], [0.5, -0.1], [1.1], [np.nan], 0.5])
def test_holm_refuses(p):
    with pytest.raises(ValueError, match="pvalues"):
        holm(p)


# --- survival


def test_kaplan_meier_by_hand():
    km = kaplan_meier([1, 2, 2, 4, 5], [1, 1, 0, 1, 0])
    at = dict(zip(km.t, km.survival, strict=True))
    assert_allclose([at[t] for t in (1, 2, 4, 5)], [0.8, 0.6, 0.3, 0.3])


@quick
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=15))
def test_kaplan_meier_is_its_product(rows):
    t, o = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    km = kaplan_meier(t, o)
    for time, s in zip(km.t, km.survival, strict=True):
        events = sorted(set(t[o & (t <= time)]))
        factors = [1 - (o & (t == e)).sum() / (t >= e).sum() for e in events]
        assert s == pytest.approx(np.prod(factors), abs=1e-12)
    assert not np.isnan(np.concatenate(km)).any()
    assert (km.low <= km.survival + 1e-12).all()
    assert (km.survival <= km.high + 1e-12).all()
    assert (np.diff(km.high) <= 1e-12).all()


def test_greenwood_band_by_formula():
    # after the first of five events: S = 0.8, Greenwood sum 1 / (5 * 4)
    km = kaplan_meier([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    half = 1.959964 * math.sqrt(1 / 20) / abs(math.log(0.8))
    ends = [0.8 ** math.exp(half), 0.8 ** math.exp(-half)]
    assert_allclose([km.low[0], km.high[0]], ends, rtol=1e-6)


def test_logrank_directions():
    late, early = ([7, 8, 9, 10], [1, 1, 1, 0]), ([1, 2, 3, 4], [1, 1, 1, 1])
    assert logrank(*late, *early, "greater") < 0.05 < logrank(*late, *early, "less")
    assert logrank(*early, *late, "less") < 0.05
    both = logrank(*late, *early)
    assert both == pytest.approx(2 * logrank(*late, *early, "greater"))


@pytest.mark.parametrize(
    "t, o, why",
    [
        ([], [], "times"),
        ([1, np.nan], [1, 0], "times"),
        ([-1.0], [1], "times"),
        ([1, 2], [1], "differ in length"),
        ([1, 2], [1, 2], "observed"),
    ],
)
def test_survival_refuses(t, o, why):
    with pytest.raises(ValueError, match=why):
        kaplan_meier(t, o)


# --- all of them


def test_degenerate_samples_neither_warn_nor_give_nan():
    same, flat = [2.0] * 10, np.full((4, 6), 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = [
            *bootstrap(same),
            *bootstrap(flat, "median"),
            *np.concatenate(bootstrap_band(flat)),
            *wilson(0, 1),
            *newcombe(3, 3, 3, 3),
            fisher(0, 3, 0, 3),
            paired_permutation(same, same),
            paired_permutation([1.0], [0.0], "greater"),
            paired_permutation(same, [1.0] * 10, "greater"),
            sign_test([0.0]),
            *holm([0.0, 0.0]),
            *np.concatenate(kaplan_meier([5, 5], [0, 0])),
            *np.concatenate(kaplan_meier([5, 5], [1, 1])),
            *np.concatenate(kaplan_meier([0], [1])),
            logrank([5], [0], [5], [0]),
            logrank([5], [1], [5], [1]),
        ]
    assert not np.isnan(numbers).any()


def test_interval_prints_as_quoted():
    assert str(Interval(4.1234, 3.4, 4.6, 4)) == f"{Interval(4.1234, 3.4, 4.6, 4)}"
    assert str(Interval(4.1234, 3.4, 4.6, 4)) == "4.12 [3.4, 4.6]"
