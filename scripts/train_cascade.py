#!/usr/bin/env python3
"""Trains a real recommender cascade on ml-100k and writes what `frugal cascade train` and `serve` read.

Three stages, two instances each: recall (two towers over the whole catalogue), pre-ranking (a product of towers, and a small network
over two heads), ranking (attention of each candidate over the history, DIN-like: a light instance and a heavy one).
A click is a rating of 4 or 5. The data are split by time: the first 60 % of all ratings train the stage models, the next 20 % make the
requests that the reward model is fitted on (split `fit`), the last 20 % those it is judged on (split `test`). A request earns what the
user clicks, of the items shown, in the rest of the visit (ratings less than half an hour apart). `--split user --horizon next` splits
each user's ratings instead, and counts the next 20 ratings.

Needs Debian's python3-torch and the recbole wheel, whose ml-100k files are read in place:

    python3 scripts/bootstrap.py --cascade              installs both
    /usr/bin/python3 scripts/train_cascade.py --out DIR [--seed 1]

Writes to DIR: cascade.json (stages, FLOPs, chains, features), recall_s.onnx ..., features_{fit,test}.npy [n, d] float32,
rewards_{fit,test}.npy [n, n_chains] float32 (clicks among the shown items, every chain replayed on every request),
history_{fit,test}.npy [n, 1 + 2 L] (the week, L items, newest last, 0 = none, and their ratings).
"""

import argparse
import bisect
import itertools
import json
import math
import os
import pathlib
import sys
import time
import zipfile

# Before numpy is loaded: BLAS threads of their own waited for each other on small products (200 times the wall time on a busy machine).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError as missing:
    sys.exit(f"{missing}: `python3 scripts/bootstrap.py --cascade` installs Debian's python3-torch; run this with /usr/bin/python3")

import bootstrap
from cascade_models import LENGTH, Attention, Dot, Recall

SHOWN = 20  # items shown: clicks are counted among these
HORIZON = 20  # ratings after a request whose clicks it could have earned
RECALL_COUNTS = [50, 100, 200, 400, 800]
PRERANK_COUNTS = [20, 30, 40, 60, 80, 120, 160, 240]
DAY = 86400
VISIT_GAP = 1800  # seconds without a rating that end a visit
CUTS = (0.3, 0.42, 0.52, 0.6)  # rankers learn on what follows each of the first three from what was known there


def read_table(wheel, name):
    with zipfile.ZipFile(wheel) as z:
        text = z.read(f"recbole/dataset_example/ml-100k/ml-100k.{name}").decode("latin-1")
    lines = text.splitlines()
    return [line.split("\t") for line in lines[1:]]


class Data:
    """ml-100k: by_user[u] = [(time, item, rating)] by time; items from 1, as 0 pads; year and genres by item; popularity by week."""

    def __init__(self, wheel, split="all", horizon="visit"):
        self.split, self.horizon = split, horizon
        rows = read_table(wheel, "inter")
        user_no = {u: i for i, u in enumerate(sorted({r[0] for r in rows}, key=int))}
        item_no = {v: i + 1 for i, v in enumerate(sorted({r[1] for r in rows}, key=int))}
        self.n_items = len(item_no)
        self.by_user = [[] for _ in user_no]
        for u, v, rating, at in rows:
            self.by_user[user_no[u]].append((float(at), item_no[v], float(rating)))
        for history in self.by_user:
            history.sort()
        self.people = {user_no[r[0]]: (float(r[1]), r[2] == "F") for r in read_table(wheel, "user") if r[0] in user_no}
        items = [r for r in read_table(wheel, "item") if r[0] in item_no]
        names = sorted({g for r in items for g in r[3].split(" ")})
        self.year = np.zeros(self.n_items + 1, dtype=np.float32)
        self.genres = np.zeros((self.n_items + 1, len(names)), dtype=np.float32)
        for r in items:
            self.year[item_no[r[0]]] = (float(r[2]) - 1990) / 10 if r[2].replace(".", "").isdigit() else 0
            for g in r[3].split(" "):
                self.genres[item_no[r[0]], names.index(g)] = 1
        self.genres /= np.sqrt(np.maximum(1, self.genres.sum(1, keepdims=True)))
        # How popular an item was in the 30 days before each week began: nothing of the week itself or later.
        self.start = min(h[0][0] for h in self.by_user)
        clicks = np.array([(t, i) for h in self.by_user for t, i, r in h if r >= 4])
        n_weeks = self.week(max(h[-1][0] for h in self.by_user)) + 1
        self.weekly = np.zeros((n_weeks, self.n_items + 1), dtype=np.float32)
        for w in range(n_weeks):
            begins = self.start + w * 7 * DAY
            late = clicks[(clicks[:, 0] < begins) & (clicks[:, 0] >= begins - 30 * DAY), 1].astype(int)
            count = np.bincount(late, minlength=self.n_items + 1)
            self.weekly[w] = np.log((count + 1) / (count.sum() + 500))

        self.times = np.sort([t for h in self.by_user for t, _, _ in h])

    def upto(self, user, cut):
        """How many of the user's ratings lie before `cut`, a share of all ratings by time (split `user`: of the user's own)."""
        history = self.by_user[user]
        if self.split == "user" or cut >= 1:
            return int(cut * len(history))
        return bisect.bisect_left(history, (self.times[int(cut * len(self.times))],))

    def clicks(self, user, t, last):
        """The items that a request before rating t could earn, of the ratings before `last`."""
        history, end = self.by_user[user], min(t + HORIZON, last)
        if self.horizon == "visit":
            end = t
            while end < last and history[end][0] - history[end - 1][0] < VISIT_GAP:
                end += 1
        return sorted({i for _, i, r in history[t:end] if r >= 4})

    def week(self, at):
        return int((at - self.start) // (7 * DAY))

    def history(self, user, t):
        """What the models see of the first t ratings: [1 + 2 LENGTH]"""
        past = self.by_user[user][:t]
        fill = [0] * (LENGTH - min(LENGTH, len(past)))
        return [self.week(past[-1][0])] + fill + [i for _, i, _ in past[-LENGTH:]] + fill + [int(r) for _, _, r in past[-LENGTH:]]


class Known:
    """What the first `cut` of each user's ratings says: item to item weights in factors, and tables by item and week."""

    def __init__(self, data, cut):
        n = data.n_items + 1
        clicks, every, follow = np.zeros((len(data.by_user), n)), np.zeros((len(data.by_user), n)), np.zeros((n, n))
        ratings = np.zeros((2, n))
        for user, history in enumerate(data.by_user):
            past = history[:data.upto(user, cut)]
            for a, (_, item, rating) in enumerate(past):
                clicks[user, item], every[user, item] = rating >= 4, 1
                ratings[:, item] += rating, 1
                later = [i for _, i, r in past[a + 1:a + HORIZON] if r >= 4]
                follow[item, later] += 1
        popular = (clicks.sum(0) + 0.5) / clicks.sum()
        lift = (follow + 100 * popular) / (follow.sum(1, keepdims=True) + 100) / popular
        self.spaces = {"clicked": factors(similarity(clicks, 300)), "rated": factors(similarity(every, 300)),
                       "follows": factors(np.log(lift))}
        self.table = np.stack([np.log(popular) + 8, (ratings[0] + 17.5) / (ratings[1] + 5) - 3.5, data.year], 1).astype(np.float32)
        self.weekly = data.weekly


def similarity(seen, strength):
    """Item to item weights by ridge regression of each item on the others (EASE, Steck 2019)."""
    inverse = np.linalg.inv(seen.T @ seen + strength * np.eye(seen.shape[1]))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def factors(weights, most=64):
    u, s, v = torch.svd_lowrank(torch.tensor(weights, dtype=torch.float32), q=most + 16, niter=4)
    root = torch.sqrt(s[:most])
    return (u[:, :most] * root).numpy(), (v[:, :most] * root).numpy()


class Rows:
    """Requests between two points of each user's ratings, as shares of the last: histories [n, 1 + 2 L], the items seen before, the
    items clicked within the horizon. Requests that can earn nothing teach nothing; they are left out unless `all`."""

    def __init__(self, data, begin, end, step, all=False):
        self.requests, histories, seen, clicked = [], [], [], []
        for user, history in enumerate(data.by_user):
            first, last = data.upto(user, begin), data.upto(user, end)
            for t in range(max(5, first), last, step):
                clicks = data.clicks(user, t, last)
                if clicks or all:
                    self.requests.append((user, t))
                    histories.append(data.history(user, t))
                    seen.append([i for _, i, _ in history[:t]])
                    clicked.append(clicks)
        self.histories = torch.tensor(histories)
        self.seen, self.clicked = filled(seen), filled(clicked, HORIZON)  # [n, most], 0 fills up

    def __len__(self):
        return len(self.histories)

    def targets(self, at, n):
        """1 at what is clicked. [at, n]"""
        hit = torch.zeros(len(at), n)
        hit.scatter_(1, torch.from_numpy(self.clicked[at].astype(np.int64)), 1)
        hit[:, 0] = 0
        return hit

    def hide(self, at, scores):
        """Takes out what was seen, in place."""
        scores[:, 0] = -1e9
        return scores.scatter_(1, torch.from_numpy(self.seen[at].astype(np.int64)), -1e9)


def filled(rows, width=0):
    """Lists of item numbers as an array [n, longest], filled up with 0."""
    array = np.zeros((len(rows), max([width, 1] + [len(r) for r in rows])), dtype=np.int32)
    for i, row in enumerate(rows):
        array[i, :len(row)] = row
    return array


def fit(parameters, n, loss_of, epochs, rate, decay, name):
    """Adam with decoupled weight decay and a rate that falls to a tenth. loss_of(rows) -> scalar."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = rate * (1 - 0.9 * epoch / epochs)
        total, started = 0.0, time.time()
        for at in torch.randperm(n).split(64):
            loss = loss_of(at)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(at)
        print(f"{name} epoch {epoch}: loss {total / n:.4f}, {time.time() - started:.1f} s", file=sys.stderr, flush=True)


def train_recall(model, name, rows, n_items):
    """Softmax over the items that were not seen yet, the clicks of a request sharing the target."""
    def loss_of(at):
        hit = rows.targets(at.numpy(), n_items + 1)
        scores = rows.hide(at.numpy(), model(rows.histories[at]).clone())
        return -(F.log_softmax(scores, 1) * hit / hit.sum(1, keepdim=True)).sum(1).mean()
    fit(model.parameters(), len(rows), loss_of, 2, 1e-3, 0, name)
    model.eval()


def candidates_of(known, rows, width=200):
    """What a plain product of the whole history finds: items [n, width], clicked or not [n, width]"""
    seen, item = known.spaces["rated"]
    items, hits = [], []
    age = np.arange(LENGTH - 1, -1, -1)
    for at in np.array_split(np.arange(len(rows)), max(1, len(rows) // 500)):
        past = rows.histories[at, 1:1 + LENGTH].numpy()
        user = (seen[past] * ((past > 0) * np.exp(-0.05 * age))[..., None]).sum(1)
        scores = rows.hide(at, torch.tensor((user @ item.T).astype(np.float32)))
        items.append(scores.topk(width).indices)
        hits.append(torch.gather(rows.targets(at, len(item)), 1, items[-1]))
    return torch.cat(items), torch.cat(hits)


def train_ranker(model, name, past, epochs):
    """Softmax over candidates. Factors stay as they are: networks learn what the past of each cut says of what came after it."""
    x, y = [], []
    for known, rows, items, hits in past:
        model.use(known)
        with torch.no_grad():
            x.append(torch.cat([model.found(h, i) for h, i in zip(rows.histories.split(100), items.split(100))]))
        y.append(hits)
    x, y = torch.cat(x), torch.cat(y)
    x, y = x[y.sum(1) > 0], y[y.sum(1) > 0]
    mean, inverse = x.mean((0, 1)), 1 / (x.std((0, 1)) + 1e-6)
    x = (x - mean) * inverse
    model.train()
    for i, net in enumerate(model.nets):
        fit(net.parameters(), len(x), lambda at: -(F.log_softmax(net(x[at]).squeeze(-1), 1) * y[at]).sum() / y[at].sum(),
            epochs, 5e-3, 0.01, f"{name}/{i}")
    return model.freeze(mean, inverse)


def train_stages(data, args):
    known = {cut: Known(data, cut) for cut in CUTS}
    last = known[CUTS[-1]]
    # Towers learn on ratings that their first factors do not know, or they would learn the factors' memory.
    late = Rows(data, CUTS[1], CUTS[-1], args.stride)
    towers = {}
    for dim in (6, 16, 24):
        towers[dim] = Recall(known[CUTS[1]].spaces["clicked"], dim)
        train_recall(towers[dim], f"tower_{dim}", late, data.n_items)
    past = []
    for begin, end in zip(CUTS, CUTS[1:]):
        rows = Rows(data, begin, end, args.stride)
        past.append((known[begin], rows, *candidates_of(known[begin], rows)))
    print(f"{sum(len(p[1]) for p in past)} requests to train rankers on", file=sys.stderr)
    heads = [("rated", "all", 0.05, 0), ("rated", "all", 0.2, 0), ("follows", "all", 0.05, 0), ("follows", "all", 0.2, 0)]
    more = heads + [("clicked", "clicked", 0, 0), ("clicked", "clicked", 0.05, 0), ("rated", "all", 0.02, 0),
                    ("rated", "disliked", 0.03, 0), ("rated", "all", 0.02, 20.0)]
    light_heads = [("clicked", "clicked", 0.05, 0), ("rated", "all", 0.02, 0), ("rated", "all", 0.05, 0), ("follows", "all", 0.2, 0)]
    small = Attention({"clicked": 16, "rated": 16}, [("clicked", "clicked", 0.03, 0), ("rated", "all", 0.05, 0)], 16, 1, data.genres, False)
    light = Attention({"clicked": 16, "rated": 32, "follows": 16}, light_heads, 16, 1, data.genres, True)
    heavy = Attention({"clicked": 64, "rated": 64, "follows": 64}, more, 64, 3, data.genres, True)
    for name, model in (("prerank_l", small), ("rank_s", light), ("rank_l", heavy)):
        train_ranker(model, name, past, args.epochs).use(last)
    return [[towers[6], towers[24]], [Dot(towers[16]), small], [light, heavy]]


FEATURES = ["log_history", "popularity", "popularity_spread", "rating", "recent_clicks", "late_clicks", "rating_spread",
            "log_last_hour", "log_gap", "age", "female", "last_popularity", "taste_norm"] + [f"taste_{i}" for i in range(6)]


def features_of(data, rows, tower, popularity):
    """What the reward model sees of a request: [n, d]. The user's side of the smallest tower is part of it."""
    with torch.no_grad():
        tastes = tower.user(rows.histories).numpy()
    out = []
    for (user, t), taste in zip(rows.requests, tastes):
        past = data.by_user[user][:t]
        ratings = np.array([r for _, _, r in past])
        times = [at for at, _, _ in past]
        popular = np.log1p(popularity[[i for _, i, _ in past[-32:]]])
        out.append([math.log(t), popular.mean(), popular.std(), ratings.mean(), (ratings[-10:] >= 4).mean(), (ratings[-30:] >= 4).mean(),
                    ratings.std(), math.log1p(len(times) - bisect.bisect_right(times, times[-1] - 3600)),
                    math.log1p(times[-1] - times[-2]), data.people[user][0] / 20, float(data.people[user][1]), popular[-5:].mean(),
                    np.linalg.norm(taste), *taste])
    return np.array(out, dtype=np.float32)


def replay(data, rows, models, chains):
    """Clicks of every chain for every request [n, n_chains]. Every item that a stage could be asked about is scored once; a chain
    then only selects, which gives what running it gives, as a stage scores items independently of each other."""
    recalls, preranks, ranks = models
    rewards = np.zeros((len(rows), len(chains)), dtype=np.float32)
    by_pool = {}
    for j, chain in enumerate(chains):
        r, _, p, _, k, _ = chain["actions"]
        by_pool.setdefault((r, chain["counts"][0], p), {}).setdefault(k, []).append((j, chain["counts"][1]))
    every = torch.arange(data.n_items + 1).unsqueeze(0)
    started = told = time.time()
    for start in range(0, len(rows), 16):
        at = np.arange(start, min(start + 16, len(rows)))
        if time.time() - told > 10:
            told = time.time()
            print(f"replay: {start} of {len(rows)} requests, {told - started:.0f} s", file=sys.stderr, flush=True)
        histories = rows.histories[at]
        with torch.no_grad():
            recalled = [rows.hide(at, m(histories)).numpy() for m in recalls]
            pre = [m(histories, every.expand(len(at), -1)).numpy() for m in preranks]
        pools, wanted = [], np.zeros((len(at), data.n_items + 1), dtype=bool)
        for i in range(len(at)):
            mine = {}
            for r in range(len(recalls)):
                found = np.argsort(-recalled[r][i], kind="stable")[:RECALL_COUNTS[-1]]
                for p in range(len(preranks)):
                    order = np.argsort(-pre[p][i][found], kind="stable")  # places in `found`
                    for n1 in RECALL_COUNTS:
                        mine[r, n1, p] = found[order[order < n1][:PRERANK_COUNTS[-1]]]
                        wanted[i, mine[r, n1, p]] = True
            pools.append(mine)
        items = torch.ones(len(at), wanted.sum(1).max(), dtype=torch.long)
        for i in range(len(at)):
            asked = np.flatnonzero(wanted[i])
            items[i, :len(asked)] = torch.from_numpy(asked)
        with torch.no_grad():
            scored = [m(histories, items).numpy() for m in ranks]
        for i, row in enumerate(at):
            clicked = np.zeros(data.n_items + 1, dtype=bool)
            clicked[rows.clicked[row]] = True
            clicked[0] = False
            ranked = np.full((len(ranks), data.n_items + 1), -np.inf, dtype=np.float32)
            ranked[:, items[i].numpy()] = [s[i] for s in scored]
            for key, of_ranks in by_pool.items():
                pool = pools[i][key]
                hits = np.flatnonzero(clicked[pool])
                if not len(hits):
                    continue
                for k, those in of_ranks.items():
                    scores = ranked[k, pool]
                    better = np.cumsum(scores > scores[hits, None], axis=1)  # [hits, pool]: how many beat a hit up to a place
                    for j, n2 in those:
                        inside = hits < n2
                        rewards[row, j] = (better[inside, min(n2, len(pool)) - 1] < SHOWN).sum()
    return rewards


def export(out, stages, models):
    history = torch.ones(1, 1 + 2 * LENGTH, dtype=torch.long)
    items = torch.ones(1, 50, dtype=torch.long)
    for stage, instances in zip(stages, models):
        for entry, model in zip(stage["models"], instances):
            first = stage["name"] == "recall"
            names = ["history"] if first else ["history", "items"]
            axes = {"history": {0: "batch"}, "scores": {0: "batch"}} if first else {
                "history": {0: "batch"}, "items": {0: "batch", 1: "count"}, "scores": {0: "batch", 1: "count"}}
            torch.onnx.export(model, (history,) if first else (history, items), out / entry["file"], input_names=names,
                              output_names=["scores"], dynamic_axes=axes, opset_version=13)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recbole", help=f"{bootstrap.RECBOLE_WHEEL} (default: that of bootstrap.py --cascade)")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5, help="of the ranking networks")
    parser.add_argument("--stride", type=int, default=4, help="ratings between two training requests of a user")
    parser.add_argument("--step", type=int, default=4, help="ratings between two requests of a user in fit and test")
    parser.add_argument("--split", choices=("all", "user"), default="all", help="cut all ratings by time, or each user's")
    parser.add_argument("--horizon", choices=("visit", "next"), default="visit", help="what a request could earn: rest of the visit, next 20")
    args = parser.parse_args()
    try:
        wheel = args.recbole or bootstrap.download(bootstrap.RECBOLE_WHEEL)
    except bootstrap.BootstrapError as error:
        sys.exit(f"{error}")
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    data = Data(wheel, args.split, args.horizon)
    models = train_stages(data, args)

    stages = [{"name": "recall", "counts": RECALL_COUNTS, "models": []}, {"name": "prerank", "counts": PRERANK_COUNTS, "models": []},
              {"name": "rank", "counts": [SHOWN], "models": []}]
    for stage, instances in zip(stages, models):
        for name, model in zip("sl", instances):
            stage["models"].append({"name": f"{stage['name']}_{name}", "file": f"{stage['name']}_{name}.onnx",
                                    "flops_fixed": model.flops_fixed, "flops_item": model.flops_item})
    chains = []
    for r, (i, n1), p, (j, n2), k in itertools.product(range(2), enumerate(RECALL_COUNTS), range(2), enumerate(PRERANK_COUNTS), range(2)):
        if n2 < n1:
            flops = (stages[0]["models"][r]["flops_fixed"] + stages[1]["models"][p]["flops_fixed"] + n1 * stages[1]["models"][p]["flops_item"]
                     + stages[2]["models"][k]["flops_fixed"] + n2 * stages[2]["models"][k]["flops_item"])
            chains.append({"actions": [r, i, p, j, k, 0], "counts": [n1, n2, SHOWN], "flops": flops})
    export(out, stages, models)
    (out / "cascade.json").write_text(json.dumps(
        {"format": "frugal-cascade", "version": 1, "source": f"ml-100k (GroupLens), time split 60/20/20 of {args.split} ratings, clicks of the {args.horizon}", "seed": args.seed,
         "shown": SHOWN, "history_length": 1 + 2 * LENGTH, "n_items": data.n_items, "features": FEATURES, "stages": stages, "chains": chains},
        indent=1))
    popularity = np.zeros(data.n_items + 1)
    for user, history in enumerate(data.by_user):
        for _, item, _ in history[:data.upto(user, CUTS[-1])]:
            popularity[item] += 1
    for split, begin, end in (("fit", 0.6, 0.8), ("test", 0.8, 1)):
        rows = Rows(data, begin, end, args.step, all=True)
        np.save(out / f"features_{split}.npy", features_of(data, rows, models[0][0], popularity))
        np.save(out / f"history_{split}.npy", rows.histories.numpy().astype(np.int32))
        np.save(out / f"seen_{split}.npy", rows.seen)
        np.save(out / f"clicked_{split}.npy", rows.clicked)
        np.save(out / f"user_{split}.npy", np.array([[u] for u, _ in rows.requests], dtype=np.int32))
        rewards = replay(data, rows, models, chains)
        np.save(out / f"rewards_{split}.npy", rewards)
        mean, flops = rewards.mean(0), np.array([c["flops"] for c in chains])
        print(f"{split}: {len(rows)} requests; clicks of a request: cheapest chain {mean[flops.argmin()]:.3f}, dearest {mean[flops.argmax()]:.3f}, "
              f"best static {mean.max():.3f} ({flops[mean.argmax()] / 1e6:.2f} MFLOPs), best per request {rewards.max(1).mean():.3f}", flush=True)


if __name__ == "__main__":
    main()
