"""The stage models of scripts/train_cascade.py: towers, and attention over the history."""

import sys

try:
    import numpy as np
    import torch
    import torch.nn as nn
except ImportError as missing:
    sys.exit(f"{missing}: `python3 scripts/bootstrap.py --cascade` installs Debian's python3-torch; run scripts/train_cascade.py with /usr/bin/python3")

LENGTH = 64  # rated items that the models see


class Recall(nn.Module):
    """Two towers: history [B, 1 + 2 L] -> scores of all items [B, n_items + 1]. Starts from item to item weights in `dim` factors."""

    def __init__(self, space, dim):
        super().__init__()
        seen, item = space[0][:, :dim] * 4, space[1][:, :dim] * 4
        self.seen = nn.Embedding.from_pretrained(torch.tensor(seen), freeze=False)
        self.item = nn.Embedding.from_pretrained(torch.tensor(item), freeze=False)
        self.bias = nn.Embedding(len(item), 1)
        nn.init.zeros_(self.bias.weight)
        self.place = nn.Parameter(torch.linspace(-1, 0.5, LENGTH))
        self.flops_fixed = LENGTH * dim * 2 + len(item) * dim * 2
        self.flops_item = 0

    def user(self, history):
        weight = torch.exp(self.place) * (history[:, 1 + LENGTH:] >= 4).float()
        return (self.seen(history[:, 1:1 + LENGTH]) * weight.unsqueeze(-1)).sum(1)  # [B, d]

    def forward(self, history):
        return self.user(history) @ self.item.weight.t() + self.bias.weight.squeeze(-1)


class Dot(nn.Module):
    """The cheapest that scores items: a tower's product, history [B, 1 + 2 L], items [B, N] -> scores [B, N]"""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        dim = tower.item.weight.shape[1]
        self.flops_fixed = LENGTH * dim * 2
        self.flops_item = 2 * dim + 1

    def forward(self, history, items):
        t = self.tower
        return torch.matmul(t.item(items), t.user(history).unsqueeze(-1)).squeeze(-1) + t.bias(items).squeeze(-1)


class Attention(nn.Module):
    """Attention of each candidate over the history (DIN-like), and small networks over what its heads find and what is known of the
    items: history [B, 1 + 2 L], items [B, N] -> scores [B, N].

    spaces: {name: dim}, item to item weights as products of factors. heads: (space, "clicked" | "all" | "disliked", decay with age,
    sharpness): a head adds up the products with the history, the newer the heavier; with a sharpness it attends to what is
    nearest. `recent`: knows how popular items were in the 30 days before the request's week.
    """

    def __init__(self, spaces, heads, hidden, members, genres, recent):
        super().__init__()
        self.spaces, self.heads, self.recent = spaces, heads, recent
        self.seen, self.item = nn.ModuleDict(), nn.ModuleDict()
        self.genres = genres
        n = len(heads) + 3 + (3 if recent else 0)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("inverse", torch.ones(n))
        self.nets = nn.ModuleList()
        for _ in range(members):
            wide = [nn.Linear(n, hidden), nn.ReLU(), nn.Dropout(0.2)]
            if hidden > 32:
                wide += [nn.Linear(hidden, hidden // 2), nn.ReLU()]
            self.nets.append(nn.Sequential(*wide, nn.Linear(hidden // 2 if hidden > 32 else hidden, 1)))
        net = n * hidden + (hidden * (hidden // 2) + hidden // 2 if hidden > 32 else hidden)
        self.flops_fixed = LENGTH * (4 * len(heads) + (2 * len(genres[0]) if recent else 0))
        self.flops_item = (sum(LENGTH * 2 * dim for dim in spaces.values()) + sum(LENGTH * (7 if h[3] else 2) + 2 for h in heads)
                           + (4 * len(genres[0]) if recent else 0) + 2 * n + members * 2 * net)

    def use(self, known):
        """Takes the factors and tables of `known` (Known, of any cut): networks only ever see products, so they go on fitting."""
        for name, dim in self.spaces.items():
            u, v = known.spaces[name]
            self.seen[name] = nn.Embedding.from_pretrained(torch.tensor(np.ascontiguousarray(u[:, :dim])))
            self.item[name] = nn.Embedding.from_pretrained(torch.tensor(np.ascontiguousarray(v[:, :dim])))
        self.table = nn.Embedding.from_pretrained(torch.tensor(known.table))
        self.genre = nn.Embedding.from_pretrained(torch.tensor(self.genres))
        self.weekly = nn.Embedding.from_pretrained(torch.tensor(known.weekly))
        return self

    def found(self, history, items):
        past, ratings = history[:, 1:1 + LENGTH], history[:, 1 + LENGTH:]
        age = torch.arange(LENGTH - 1, -1, -1).float()
        who = {"all": (past > 0).float(), "clicked": (ratings >= 4).float(), "disliked": ((ratings <= 2) & (past > 0)).float()}
        dots = {name: torch.matmul(self.item[name](items), self.seen[name](past).transpose(1, 2)) for name in self.spaces}
        out = []
        for space, mask, decay, sharpness in self.heads:
            weight = who[mask] * torch.exp(-decay * age)  # [B, L]
            if sharpness:
                near = weight.unsqueeze(1) * torch.exp(torch.clamp(sharpness * dots[space], -8, 8))
                out.append((near * dots[space]).sum(-1) / (near.sum(-1) + 1e-6))
            else:
                total = torch.matmul(dots[space], weight.unsqueeze(-1)).squeeze(-1)
                out.append(total / torch.sqrt(weight.sum(1, keepdim=True) + 1e-6))
        table = self.table(items)  # popularity, mean rating, year
        out += [table[..., 0], table[..., 1], table[..., 2]]
        if self.recent:
            clicked = who["clicked"].unsqueeze(-1)
            n = clicked.sum(1) + 1e-6
            taste = (self.genre(past) * clicked).sum(1) / n
            year = (self.table(past)[..., 2:] * clicked).sum(1) / n
            out.append(torch.matmul(self.genre(items), taste.unsqueeze(-1)).squeeze(-1))
            out.append((table[..., 2] - year).abs())
            out.append(torch.gather(self.weekly(history[:, 0]), 1, items))
        return torch.stack(out, -1)

    def forward(self, history, items):
        x = (self.found(history, items) - self.mean) * self.inverse
        total = self.nets[0](x)
        for net in self.nets[1:]:
            total = total + net(x)
        return total.squeeze(-1)
