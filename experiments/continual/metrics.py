"""What a sequence of tasks is judged by. `matrix[i][j]` is the score in task j after task i was learnt."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix) -> float:
    """Over all tasks, after the last one."""
    return mean(matrix[-1])


def forgetting(matrix: Matrix) -> float:
    """Of every task but the last, the best score before the end minus that at the end (Chaudhry et al., arXiv
    1801.10112). Negative where later tasks have helped."""
    *before, last = matrix
    return mean(max(row[task] for row in before) - last[task] for task in range(len(before)))


def learning_accuracy(matrix: Matrix) -> float:
    """Of every task just after it was learnt."""
    return mean(row[task] for task, row in enumerate(matrix))


MEASURES: Mapping[str, Callable[[Matrix], float]] = {
    "average_accuracy": average_accuracy,
    "forgetting": forgetting,
    "learning_accuracy": learning_accuracy,
}
