"""Heights that keep names apart."""


def apart(heights: list[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Ascending heights, moved as little as it takes to lie `gap` apart within `low` and `high`."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + gap if found else low))
    if found[-1] > high:
        found[-1] = high
        for k in range(len(found) - 2, -1, -1):
            found[k] = min(found[k], found[k + 1] - gap)
    return found
