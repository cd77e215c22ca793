"""The stage models of scripts/train_cascade.py: towers, and attention over the history."""

import sys

try:
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
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
        # The bias is one more factor, met by a 1 on the user's side: an item's row is looked up once.
        self.item = nn.Embedding.from_pretrained(torch.cat([tower.item.weight, tower.bias.weight], 1).detach())
        dim = tower.item.weight.shape[1]
        self.flops_fixed = LENGTH * dim * 2
        self.flops_item = 2 * (dim + 1)

    def forward(self, history, items):
        user = F.pad(self.tower.user(history), (0, 1), value=1.0)
        return torch.matmul(self.item(items), user.unsqueeze(-1)).squeeze(-1)


class Attention(nn.Module):
    """Attention of each candidate over the history (DIN-like), and small networks over what its heads find and what is known of the
    items: history [B, 1 + 2 L], items [B, N] -> scores [B, N].

    spaces: {name: dim}, item to item weights as products of factors. heads: (space, "clicked" | "all" | "disliked", decay with age,
    sharpness): a head adds up the products with the history, the newer the heavier; with a sharpness it attends to what is
    nearest. `recent`: knows how popular items were in the 30 days before the request's week.

    A head without sharpness is linear in the history: its sum over the history is taken once for a request, and a candidate costs one
    product. Only heads with a sharpness meet every candidate with every item of the history. An item's row of `item_table` holds all that is
    looked up of it: the factors of spaces without sharp heads, popularity, mean rating, year, genres.
    """

    def __init__(self, spaces, heads, hidden, members, genres, recent):
        super().__init__()
        self.spaces, self.heads, self.recent = spaces, heads, recent
        self.genres = genres if recent else genres[:, :0]
        self.sharp = sorted({h[0] for h in heads if h[3]})  # spaces with tables of their own
        self.n_found = len(heads) + 3 + (3 if recent else 0)
        self.nets = nn.ModuleList()
        for _ in range(members):
            wide = [nn.Linear(self.n_found, hidden), nn.ReLU(), nn.Dropout(0.2)]
            if hidden > 32:
                wide += [nn.Linear(hidden, hidden // 2), nn.ReLU()]
            self.nets.append(nn.Sequential(*wide, nn.Linear(hidden // 2 if hidden > 32 else hidden, 1)))
        net = self.n_found * hidden + (hidden * (hidden // 2) + hidden // 2 if hidden > 32 else hidden)
        linear = [h for h in heads if not h[3]]
        rest = sum(dim for name, dim in spaces.items() if name not in self.sharp) + 3 + self.genres.shape[1]
        n_rest = sum(h[0] not in self.sharp for h in linear) + 3 + (1 if recent else 0)
        self.flops_fixed = 2 * LENGTH * rest * (n_rest - 3 + (1 if recent else 0))
        self.flops_item = 2 * rest * n_rest + members * 2 * net + (4 if recent else 0)
        for name in self.sharp:
            own = sum(h[0] == name for h in linear)
            self.flops_fixed += 2 * LENGTH * spaces[name] * own
            self.flops_item += 2 * spaces[name] * (own + LENGTH) + 7 * LENGTH * sum(h[0] == name and h[3] > 0 for h in heads)

    def use(self, known):
        """Takes the factors and tables of `known` (Known, of any cut): networks only ever see products, so they go on fitting."""
        table = lambda *columns: nn.Embedding.from_pretrained(torch.tensor(np.ascontiguousarray(np.concatenate(columns, 1), dtype=np.float32)))
        cut = {name: [x[:, :dim] for x in known.spaces[name]] for name, dim in self.spaces.items()}
        rest = [name for name in self.spaces if name not in self.sharp]
        self.seen_factors = table(*[cut[name][0] for name in rest])
        self.seen_known = table(known.table[:, 2:], self.genres)
        self.item_table = table(*[cut[name][1] for name in rest], known.table, self.genres)
        self.sharp_seen = nn.ModuleDict({name: table(cut[name][0]) for name in self.sharp})
        self.sharp_item = nn.ModuleDict({name: table(cut[name][1]) for name in self.sharp})
        self.weekly = nn.Embedding.from_pretrained(torch.tensor(known.weekly.reshape(-1, 1)))
        self.n_items = known.weekly.shape[1]
        # Which factors a head sees: [heads, factors of the rest]
        begin = dict(zip(rest, np.cumsum([0] + [self.spaces[name] for name in rest])))
        linear = self.linear(rest)
        block = np.zeros((len(linear), sum(self.spaces[name] for name in rest)), dtype=np.float32)
        for row, head in zip(block, linear):
            row[begin[head[0]]:begin[head[0]] + self.spaces[head[0]]] = 1
        self.register_buffer("block", torch.tensor(block), persistent=False)
        return self

    def linear(self, spaces):
        """The heads of some spaces that sum up the history, those of one mask together."""
        return sorted([h for h in self.heads if h[0] in spaces and not h[3]], key=lambda h: h[1])

    @staticmethod
    def weights(heads, who):
        """Of each item of the history for each head: [B, heads, L]. `heads`: those of one mask together."""
        age = torch.arange(LENGTH - 1, -1, -1).float()
        parts = []
        for mask in dict.fromkeys(h[1] for h in heads):
            decays = torch.stack([torch.exp(-h[2] * age) for h in heads if h[1] == mask])
            parts.append(who[mask].unsqueeze(1) * decays)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def summed(self, heads, who, seen):
        """The history's factors, added up for each head: [B, heads, factors]"""
        weight = self.weights(heads, who)
        return torch.matmul(weight, seen) / torch.sqrt(weight.sum(2, keepdim=True) + 1e-6)

    def found(self, history, items):
        past, ratings = history[:, 1:1 + LENGTH], history[:, 1 + LENGTH:]
        who = {"all": (past > 0).float(), "clicked": (ratings >= 4).float(), "disliked": ((ratings <= 2) & (past > 0)).float()}
        heads = self.linear([name for name in self.spaces if name not in self.sharp])
        item = self.item_table(items)
        n_factors, width = self.block.shape[1], item.shape[-1]
        rows = []  # what an item's row is multiplied with: [B, outputs, width]
        if heads:
            rows.append(F.pad(self.summed(heads, who, self.seen_factors(past)) * self.block, (0, width - n_factors)))
        known = F.pad(torch.eye(3), (n_factors, width - n_factors - 3))  # popularity, mean rating, year as they are
        rows.append(known.unsqueeze(0).expand(history.shape[0], -1, -1))
        if self.recent:
            clicked = who["clicked"].unsqueeze(1)
            taste = torch.matmul(clicked, self.seen_known(past)) / (clicked.sum(2, keepdim=True) + 1e-6)  # year, genres
            rows.append(F.pad(taste[..., 1:], (n_factors + 3, 0)))
        out = [torch.matmul(item, torch.cat(rows, 1).transpose(1, 2))]
        if self.recent:
            out.append((out[0][..., len(heads) + 2:len(heads) + 3] - taste[..., :1]).abs())
            out.append(self.weekly(history[:, :1] * self.n_items + items))
        for name in self.sharp:
            seen, item = self.sharp_seen[name](past), self.sharp_item[name](items)
            own = self.linear([name])
            if own:
                out.append(torch.matmul(item, self.summed(own, who, seen).transpose(1, 2)))
            dots = torch.matmul(item, seen.transpose(1, 2))
            for head in [h for h in self.heads if h[0] == name and h[3]]:
                near = self.weights([head], who) * torch.exp(torch.clamp(head[3] * dots, -8, 8))
                out.append((near * dots).sum(-1, keepdim=True) / (near.sum(-1, keepdim=True) + 1e-6))
        return torch.cat(out, -1)

    def freeze(self, mean, inverse):
        """Takes the scaling of what was found into the first layers, whose networks were trained on (found - mean) * inverse."""
        with torch.no_grad():
            for net in self.nets:
                net[0].weight *= inverse
                net[0].bias -= net[0].weight @ mean
        return self.eval()

    def forward(self, history, items):
        x = self.found(history, items)
        total = self.nets[0](x)
        for net in self.nets[1:]:
            total = total + net(x)
        return total.squeeze(-1)
