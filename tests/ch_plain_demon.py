"DEMON as the rules of its package word it, in plain Python, slow."

from rlpapers.communityhiding.draws import _splitmix, pick

TURNS = 11


class Keyed:
    "Orders and draws that belong to (seed, ego, pass, node)."

    def __init__(self, seed):
        self.seed = seed % 2**64

    def order(self, nodes, ego, turn):
        key = _splitmix(_splitmix(self.seed) ^ ego)
        bits = lambda v: _splitmix(key ^ (16 + turn) << 32 ^ v) >> 24
        return sorted(nodes, key=lambda v: (bits(v), v))

    def one(self, choices, ego, node):
        return choices[pick(self.seed, ego, 0, node, len(choices))]


class Replayed:
    "Python's generator."

    def __init__(self, rng):
        self.rng = rng

    def order(self, nodes, ego, turn):
        nodes = list(nodes)
        self.rng.shuffle(nodes)
        return nodes

    def one(self, choices, ego, node):
        return self.rng.sample(choices, 1)[0]


def ascending(rows, ego):
    near = sorted(rows[ego])
    return {v: sorted(rows[v] & rows[ego]) for v in near}


def package(rows, ego):
    "Nodes and rows of the ego's graph in the order of networkx and Python's sets."
    ball = set([ego, *sorted(rows[ego])])
    order = list(ball) if 2 * len(ball) < len(rows) else sorted(ball)
    order.remove(ego)
    inner = {v: [] for v in order}
    for v in order:
        for w in sorted(rows[v] & rows[ego]):
            if w not in inner[v]:
                inner[v].append(w)
                inner[w].append(v)
    return inner


def circles(inner, ego, draws):
    "Groups of one ego: first member, ego, other members."
    labels = {v: [v] for v in inner}
    for turn in range(TURNS):
        for v in draws.order(list(inner), ego, turn):
            counts = {}
            for w in inner[v]:
                for x in labels[w]:
                    counts[x] = counts.get(x, 0) + 1
            if not counts:
                continue
            if turn == 0:
                labels[v] = [draws.one(list(counts), ego, v)]
                continue
            best = max(counts.values())
            most = [x for x, c in counts.items() if c == best]
            if set(most) != set(labels[v]):
                labels[v] = most
    groups = {}
    for v in inner:
        for x in labels[v]:
            if x in groups:
                groups[x].append(v)
            else:
                groups[x] = [v, ego]
    return list(groups.values())


def merge(groups, epsilon):
    communities = {}
    for group in groups:
        if tuple(group) in communities:
            continue
        members = set(group)
        for c in list(communities):
            share = len(members & set(c)) / min(len(members), len(c))
            if share >= epsilon:
                del communities[c]
                members |= set(c)
                break
        communities[tuple(sorted(members))] = True
    return [frozenset(c) for c in communities]


def demon(rows, epsilon, least=3, draws=None, orders=ascending):
    "Communities of a graph given as id -> set of ids, ids 0 … n-1."
    groups = []
    for ego in range(len(rows)):
        found = circles(orders(rows, ego), ego, draws or Keyed(0))
        groups += [g for g in found if len(g) > least]
    return merge(groups, epsilon)
