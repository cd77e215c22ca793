#!/usr/bin/env python3
"""Fits the constants of the carbon intensity forecaster (src/jobs/forecast.cc) on Electricity Maps CSV exports.

    fit_forecast.py FILE.csv...      prints weights, gain and fading time

The forecast h hours ahead is B(t+h) + gain * exp(-h / hours) * (y(t) - B(t)), B being a weighted sum of the same hour of the last
known day, its mean over seven days and the same hour of last week. Least squares over 1 to 48 hours, each file scaled
by its own variance; the weights alternate with a search over gain and fading time.
"""

import csv
import math
import sys

WEEK, AHEAD = 168, range(1, 49)


def load(path):
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = next(c for c in rows[0] if "LCA" in c)
    return [float(r[column]) for r in rows if r[column]]


def parts(y, now, hour):
    """Yesterday, mean of seven days, last week: all known at `now`."""
    back = max(1, -(-(hour - now) // 24))
    weeks = max(1, -(-(hour - now) // WEEK))
    days = [y[hour - 24 * (back + i)] for i in range(7)]
    return (days[0], sum(days) / 7, y[hour - WEEK * weeks])


def samples(y):
    mean = sum(y) / len(y)
    scale = 1 / math.sqrt(sum((v - mean) ** 2 for v in y) / len(y))
    for now in range(400, len(y) - 60, 37):
        here = parts(y, now, now)
        for h in AHEAD:
            yield h, [scale * v for v in parts(y, now, now + h)], [scale * v for v in here], scale * y[now], scale * y[now + h]


def solve(matrix, vector):
    """Gaussian elimination with pivoting."""
    n = len(vector)
    rows = [list(r) + [v] for r, v in zip(matrix, vector)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                f = rows[r][i] / rows[i][i]
                rows[r] = [a - f * b for a, b in zip(rows[r], rows[i])]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def fit(data, gain, hours):
    """Weights for a given fading, and their loss: linear in the weights."""
    ata, atb, bb = [[0.0] * 3 for _ in range(3)], [0.0] * 3, 0.0
    for h, ahead, here, now, truth in data:
        fade = gain * math.exp(-h / hours)
        x = [a - fade * b for a, b in zip(ahead, here)]
        t = truth - fade * now
        bb += t * t
        for i in range(3):
            atb[i] += x[i] * t
            for j in range(3):
                ata[i][j] += x[i] * x[j]
    w = solve(ata, atb)
    return bb - sum(a * b for a, b in zip(w, atb)), w


def main(paths):
    if not paths:
        sys.exit(__doc__)
    data = [s for path in paths for s in samples(load(path))]
    best = min((fit(data, gain, hours), gain, hours) for gain in (0.85, 0.9, 0.94, 1.0) for hours in (12, 20, 30, 38, 44.6, 52, 70))
    (loss, w), gain, hours = best
    print(f"yesterday {w[0]:.3f}  mean {w[1]:.3f}  last week {w[2]:.3f}  gain {gain}  hours {hours}  rms {math.sqrt(loss / len(data)):.3f} of sd")


if __name__ == "__main__":
    main(sys.argv[1:])
