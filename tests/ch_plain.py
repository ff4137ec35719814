"ANGEL as the specification words it, in plain Python, slow."

import math
from collections import Counter

from rlpapers.communityhiding.draws import pick


def least_size(threshold, least=3):
    return max(3, least, int(1 / (1 - threshold)))


def propagate(order, around, ego, draw):
    "Label propagation; order: nodes visited; around[v]: neighbours in the ego's graph."
    labels = {v: [v] for v in order}
    for v in order:
        if not around[v]:
            labels[v] = []
    frozen = set()
    turns = min(7, math.log2(len(order)) + 1)
    t = 0
    while t < turns:
        for v in order:
            if v in frozen or not around[v]:
                continue
            count = Counter()  # keeps the order in which keys come
            for w in around[v]:
                count.update(labels[w])
            if t == 1:
                if count:
                    labels[v] = [list(count)[draw(ego, t, v, len(count))]]
                continue
            best = max(count.values(), default=0)
            labels[v] = [x for x, c in count.items() if c == best]
            if best == len(around[v]):
                frozen.add(v)
        t += 1
    groups = {}
    for v in order:
        for x in labels[v]:
            groups.setdefault(x, []).append(v)
    return list(groups.values())


def kept(groups, least):
    out = []
    for g in groups:
        if len(g) < least:
            break
        out.append(g)
    return out


def micro(graph, ego, least, draw, orders=None):
    "Micro-communities of one ego that are merged; graph: id -> set of ids."
    if len(graph[ego]) < least:
        return []
    if orders is None:
        order = sorted(graph[ego])
        around = {v: [w for w in order if w in graph[v]] for v in order}
    else:
        order, around = orders(graph, ego)
    return kept(propagate(order, around, ego, draw), least)


def package_orders(graph, ego):
    "The orders in which the package's sets are iterated."
    ball = set([ego, *sorted(graph[ego])]) - {ego}
    ball = set(ball)
    return list(ball), {v: list(set(sorted(graph[v])) & ball) for v in ball}


def merge(groups, threshold):
    communities = []
    for m in groups:
        m = set(m)
        found = [c for c in communities if len(m & c) / len(m) > threshold]
        for c in found:
            c |= m
        if not found:
            communities.append(m)
    return communities


def clean(communities, threshold):
    communities = dict(enumerate(communities))
    before = -1
    while before != len(communities):
        before = len(communities)
        for i in sorted(communities, key=lambda i: (len(communities[i]), i)):
            c = communities[i]
            found = [
                d
                for j, d in communities.items()
                if j != i and len(c & d) / len(c) > threshold
            ]
            for d in found:
                d |= c
            if found:
                del communities[i]
    return list(communities.values())


def angel(graph, threshold, seed=0, least=3, orders=None, draw=None):
    "Communities of a graph given as id -> set of ids, ids 0 … n-1."
    least = least_size(threshold, least)
    draw = draw or (lambda *place: pick(seed, *place))
    groups = []
    for e in range(len(graph)):
        groups += micro(graph, e, least, draw, orders)
    cs = clean(merge(groups, threshold), threshold)
    return [frozenset(c) for c in cs if len(c) >= least]


def rows(arrays):
    "A graph as id -> set of ids."
    return {v: set(arrays.neighbors(v).tolist()) for v in range(arrays.n)}
