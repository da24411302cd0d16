#!/usr/bin/env python3
"""Writes stats.json beside itself: estimators of SciPy and NumPy on seeded samples.

Run with NumPy and SciPy installed: python3 stats.py
"""

import json
import pathlib

import numpy as np
import scipy
from scipy import stats

rng = np.random.default_rng(20260203)


def describe(name, samples):
    samples = [float(x) for x in samples]
    case = {
        "name": name,
        "samples": samples,
        "mean": float(np.mean(samples)),
        "median": float(np.median(samples)),
        "mad": float(stats.median_abs_deviation(samples)),
        "quantiles": {str(p): float(np.quantile(samples, p)) for p in (0, 0.025, 0.25, 0.5, 0.9, 0.99, 1)},
    }
    if len(samples) > 1:
        case["stddev"] = float(np.std(samples, ddof=1))
        interval = stats.bootstrap(
            (samples,), np.median, n_resamples=200_000, batch=5000, method="percentile", rng=1
        ).confidence_interval
        case["ci95"] = [float(interval.low), float(interval.high)]
    return case


def pair(name, a, b):
    a, b = [float(x) for x in a], [float(x) for x in b]
    result = stats.mannwhitneyu(a, b, alternative="two-sided", method="auto")
    return {"name": name, "a": a, "b": b, "u": float(result.statistic), "p_value": float(result.pvalue)}


def differences(name, values):
    values = [float(x) for x in values]
    result = stats.wilcoxon(values, alternative="two-sided", method="auto")
    # the statistic of a two-sided test is the smaller of both rank sums
    return {"name": name, "values": values, "w": float(result.statistic), "p_value": float(result.pvalue)}


described = [
    describe("one", [3.5]),
    describe("two", [1.0, 2.0]),
    describe("three", [9.0, 1.0, 4.0]),
    describe("equal", [7.25] * 5),
    describe("normal, even", rng.normal(1000, 10, 40)),
    describe("normal, odd", rng.normal(1000, 10, 41)),
    describe("lognormal", np.exp(rng.normal(0, 1, 75))),
    describe("two modes", np.concatenate([rng.normal(100, 1, 30), rng.normal(120, 1, 21)])),
    describe("close and far from zero", 1e9 + rng.normal(0, 1, 60)),
    describe("ties", rng.integers(0, 6, 50)),
]
pairs = [
    pair("one each", [1], [2]),
    pair("exact, apart", [1, 2, 3, 4], [5, 6, 7, 8, 9]),
    pair("exact, mixed", [1.1, 3.3, 5.5, 7.7], [2.2, 4.4, 6.6]),
    pair("exact, uneven", rng.normal(0, 1, 8), rng.normal(0.5, 1, 60)),
    pair("exact, uneven, turned", rng.normal(0, 1, 60), rng.normal(-0.8, 1, 8)),
    pair("ties", [1, 2, 2, 3, 3], [2, 3, 4, 4]),
    pair("all equal", [1, 1, 1], [1, 1]),
    pair("normal approximation, same", rng.normal(0, 1, 50), rng.normal(0, 1, 40)),
    pair("normal approximation, apart", rng.normal(0, 1, 50), rng.normal(1, 1, 40)),
    pair("far apart", rng.normal(0, 1, 100), rng.normal(50, 1, 100)),
    pair("many ties", rng.integers(0, 5, 80), rng.integers(0, 6, 90)),
]

# drawn from a generator of their own, so that what stands above stays as it was
rng = np.random.default_rng(20261126)
paired = [
    differences("one", [2.0]),
    differences("exact, one side", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    differences("exact, mixed", [1.5, -2.5, 3.5, -0.5, 4.5, 5.5, -6.5]),
    differences("exact, 50", rng.normal(0.2, 1, 50)),
    differences("approximation, 51", rng.normal(0.2, 1, 51)),
    differences("approximation, many", rng.normal(0.05, 1, 400)),
    differences("ties", rng.integers(-4, 6, 40)),
    differences("zeros", [0.0, 0.0, 1.0, -2.0, 3.0, 4.5, 0.0, -1.5]),
    differences("far to one side", rng.normal(30, 1, 200)),
]

out = {"made_with": f"scipy {scipy.__version__}, numpy {np.__version__}", "described": described, "pairs": pairs, "paired": paired}
pathlib.Path(__file__).with_name("stats.json").write_text(json.dumps(out, indent=1) + "\n")
