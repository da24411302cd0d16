#!/usr/bin/env python3
"""Writes blocks.json beside itself: block lengths of arch on seeded series.

Run with NumPy and arch installed: python3 blocks.py
"""

import json
import pathlib

import arch
import numpy as np
from arch.bootstrap import optimal_block_length

rng = np.random.default_rng(20261126)


def series(name, values):
    values = [round(float(x), 4) for x in values]
    length = float(optimal_block_length(np.array(values))["circular"].iloc[0])
    return {"name": name, "values": values, "circular": length}


def autoregressive(phi, n):
    x, level = [], 0.0
    for noise in rng.normal(0, 1, n + 100):
        level = phi * level + noise
        x.append(level)
    return x[100:]


cases = [
    series(f"autoregressive, {phi}, {n} samples", autoregressive(phi, n))
    for n in (30, 150, 600)
    for phi in (0.0, 0.6, 0.95, -0.5)
]
cases.append(series("indicator", [float(x > 0) for x in autoregressive(0.8, 300)]))
result = {"arch": arch.__version__, "cases": cases}
(pathlib.Path(__file__).parent / "blocks.json").write_text(json.dumps(result) + "\n")
