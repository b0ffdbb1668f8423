"""Choosing one width for each item under a budget, by dynamic programming."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The budget is counted in at most this many quanta.
MAX_QUANTA = 2**18


@dataclass(frozen=True)
class Choice:
    """options: the option taken of each item; size, cost: their exact sums.

    quantum: the unit that sizes were counted in. With 1, or any common divisor of all sizes, the
    choice is optimal; else it is at least as good as every choice whose sizes, each rounded up to
    whole quanta, are within the budget.
    """

    options: list[int]
    size: int
    cost: float
    quantum: int


def cheapest_choice(
    sizes: Sequence[Sequence[int]],
    costs: Sequence[Sequence[float]],
    budget: int,
    max_quanta: int = MAX_QUANTA,
) -> Choice | None:
    """The multiple-choice knapsack: one option of each item, least total cost, size <= budget.

    sizes, costs: of each item's options, sizes positive. The same input gives the same choice, also
    where several cost the same. Takes time in proportion to items x options x quanta and a byte for
    each item and quantum. None where not even the smallest options fit.
    """
    # Sizes of one checkpoint share a large divisor: no rounding at all for small models.
    divisor = int(np.gcd.reduce([size for item in sizes for size in item]))
    useful = min(budget, sum(max(item) for item in sizes))
    quantum = divisor * max(1, -(-(useful // divisor) // max_quanta))
    needs = [[-(-size // quantum) for size in item] for item in sizes]
    width = min(budget // quantum, sum(max(item) for item in needs)) + 1
    best = np.zeros(width)  # least cost of the items so far within that many quanta
    taken = np.zeros((len(sizes), width), np.uint8)
    for item, (item_needs, item_costs) in enumerate(zip(needs, costs, strict=True)):
        after = np.full(width, np.inf)
        for option, (need, cost) in enumerate(zip(item_needs, item_costs, strict=True)):
            if need >= width:
                continue
            candidate = best[: width - need] + cost
            better = candidate < after[need:]
            after[need:][better] = candidate[better]
            taken[item, need:][better] = option
        best = after
    if not np.isfinite(best[-1]):
        return None
    options = [0] * len(sizes)
    left = width - 1
    for item in reversed(range(len(sizes))):
        options[item] = int(taken[item, left])
        left -= needs[item][options[item]]
    size = sum(item[option] for item, option in zip(sizes, options, strict=True))
    cost = sum(float(item[option]) for item, option in zip(costs, options, strict=True))
    return Choice(options, size, cost, quantum)
