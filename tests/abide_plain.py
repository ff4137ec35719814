"Plain references for the tests of AbideGym, written from the specification."

from collections import deque

import gymnasium as gym
import numpy as np

M64 = 2**64 - 1
EPISODE = M64
MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))
COLORS = "red green blue purple yellow grey".split()
BUSY = (0.13, 0.13, 0.36, 0.14, 0.06, 0.16, 0.02)  # actions that get somewhere


def mix(z):
    "The finaliser of SplitMix64."
    z &= M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


class Numbers:
    "SplitMix64 of one event, as the specification's section 3.7 has it."

    def __init__(self, seed, env=0, episode=0, event=0):
        self.key, self.i = mix(mix(mix(mix(seed) ^ env) ^ episode) ^ event), 0

    def at(self, i):
        return mix(self.key + (i + 1) * 0x9E3779B97F4A7C15)

    def below(self, n):
        self.i += 1
        return (self.at(self.i - 1) * n) >> 64


def is_switch(obj):
    return obj is not None and obj.type == "ball" and not obj.can_pickup()


def locked(env):
    "Cells of locked doors, row by row."
    g = env.unwrapped.grid
    cells = ((x, y) for y in range(g.height) for x in range(g.width))
    door = lambda o: o is not None and o.type == "door" and o.is_locked
    return [c for c in cells if door(g.get(*c))]


def shut(env):
    "Whether there is a door and none is open."
    doors = [o for o in env.unwrapped.grid.grid if o is not None and o.type == "door"]
    return bool(doors) and not any(d.is_open for d in doors)


class Walk:
    "A MiniGrid world without putting things down: what can be done from a pose."

    def __init__(self, env):
        b = env.unwrapped
        self.w, self.h = b.width, b.height
        self.start = (*map(int, b.agent_pos), int(b.agent_dir))
        self.fixed, self.doors, self.things = {}, {}, {}
        for x in range(b.width):
            for y in range(b.height):
                o = b.grid.get(x, y)
                if o is None or o.type == "floor":
                    continue
                if o.type == "door":
                    state = 0 if o.is_open else 2 if o.is_locked else 1
                    self.doors[x, y] = (o.color, state)
                elif is_switch(o):
                    self.fixed[x, y] = ("switch", o.color)
                elif o.can_pickup():
                    self.things[x, y] = (o.type, o.color)
                else:
                    self.fixed[x, y] = (o.type, o.color)
        held = b.carrying
        self.held = None if held is None else (held.type, held.color)

    def first(self):
        doors = tuple(self.doors[d][1] for d in sorted(self.doors))
        return (*self.start, self.held, doors, frozenset(self.things))

    def after(self, s):
        "Follow-up states with their actions; None in place of one that wins."
        x, y, d, held, doors, things = s
        names = sorted(self.doors)
        yield 0, (x, y, (d - 1) % 4, held, doors, things)
        yield 1, (x, y, (d + 1) % 4, held, doors, things)
        f = (x + MOVES[d][0], y + MOVES[d][1])
        kind, color = self.fixed.get(f, (None, None))
        if f in self.doors:
            i, (color, _) = names.index(f), self.doors[f]
            state = doors[i]
            if state == 0:
                yield 2, (*f, d, held, doors, things)
            if state < 2 or held == ("key", color):
                new = 1 if state == 0 else 0
                yield 5, (x, y, d, held, doors[:i] + (new,) + doors[i + 1 :], things)
        elif f in things:
            if held is None:
                yield 3, (x, y, d, self.things[f], doors, things - {f})
        elif kind == "goal":
            yield 2, None
        elif kind == "switch":
            new = tuple(
                0 if self.doors[n][0] == color else s
                for n, s in zip(names, doors, strict=True)
            )
            yield 5, (x, y, d, held, new, things)
        elif kind is None and 0 <= f[0] < self.w and 0 <= f[1] < self.h:
            yield 2, (*f, d, held, doors, things)

    def shortest(self, goal="goal"):
        "Actions of a shortest way to the goal, or to an open door; None: no way."
        s = self.first()
        came, todo = {s: None}, deque([s])
        won = lambda t: t is None if goal == "goal" else t and 0 in t[4]
        while todo:
            s = todo.popleft()
            for a, t in self.after(s):
                if won(t):
                    out = [a]
                    while came[s] is not None:
                        s, a = came[s]
                        out.append(a)
                    return out[::-1]
                if t is not None and t not in came:
                    came[t] = (s, a)
                    todo.append(t)
        return None


def shortest(env, goal="goal"):
    return Walk(env).shortest(goal)


def steps_left(env, goal="goal"):
    way = shortest(env, goal)
    return 10**6 if way is None else len(way)


def near_cells(env):
    "Cells of the agent's component: over what can be carried, not through doors."
    b = env.unwrapped
    seen, todo = {tuple(map(int, b.agent_pos))}, [tuple(map(int, b.agent_pos))]
    while todo:
        x, y = todo.pop()
        for i, j in MOVES:
            c = (x + i, y + j)
            o = b.grid.get(*c)
            free = o is None or o.can_overlap() or o.can_pickup()
            if o is not None and (o.type == "door" and not o.is_open):
                free = False
            if free and c not in seen:
                seen.add(c)
                todo.append(c)
    return seen


def rekey_choices(env, numbers):
    "Door, colour and cell of one try of `Rekey`, in the order of its draws."
    b, doors = env.unwrapped, locked(env)
    if not doors:
        return None
    door = doors[0] if len(doors) == 1 else doors[numbers.below(len(doors))]
    keys = {o.color for o in b.grid.grid if o is not None and o.type == "key"}
    if b.carrying is not None and b.carrying.type == "key":
        keys.add(b.carrying.color)
    colors = [c for c in COLORS if c not in keys | {b.grid.get(*door).color}]
    color = colors[numbers.below(len(colors))]
    here = tuple(map(int, b.agent_pos))
    cells = sorted((y, x) for x, y in near_cells(env) if (x, y) != here)
    cells = [(x, y) for y, x in cells if b.grid.get(x, y) is None]
    if not cells:
        return None
    return door, color, cells[numbers.below(len(cells))]


def made(env_id, rules=(), **kwargs):
    "A wrapped MiniGrid environment."
    from rlpapers.abidegym import AbideGymWrapper

    names = ("max_steps", "render_mode", "agent_view_size", "size", "see_through_walls")
    inner = {k: kwargs.pop(k) for k in names if k in kwargs}
    return AbideGymWrapper(gym.make(env_id, **inner), list(rules), **kwargs)


def play(env, actions, seed=None, each=None):
    "Rewards, ends and infos of an episode."
    env.reset(seed=seed)
    out = []
    for a in actions:
        _, reward, term, trunc, info = env.step(int(a))
        out.append((reward, term, trunc, info))
        if each:
            each(env, info)
        if term or trunc:
            break
    return out


def busy(n, seed):
    return np.random.default_rng(seed).choice(7, n, p=BUSY)
