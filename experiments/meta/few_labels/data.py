"""The problems: a source, a few labels of the target, and tests of the target."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from experiments.classification.cells import cell_pictures
from experiments.classification.data import Pictures, limit_items, split
from experiments.classification.emoji import emoji_pictures
from experiments.classification.task import ClassificationTask
from experiments.common.errors import InputError
from experiments.common.examples import flipped, generator
from experiments.common.opinions import FILES, opinions
from experiments.common.progress import Progress
from experiments.common.task import Network, Part, Task
from experiments.common.tweets import SENTIMENTS
from experiments.meta.few_labels.config import ANNOTATORS, NOISE, TEXTS, WRONG, Config, Name

TESTED = 175  # texts of each class
SHARES = (0.15, 0.45, 0.4)  # of the emoji: labels, source, tests


@dataclass(frozen=True)
class Problem:
    """N examples of the source, then M of the target, in one part to train on."""

    task: Task
    source: int  # N
    labels: int  # M
    groups: Tensor  # [N], by the domain and the class as it is given
    names: tuple[str, ...]  # of the groups: "domain: class"
    right: Tensor | None  # [N], where given classes are the true ones; None where all are
    shown: tuple[str, ...] | None  # [N], each as a character; None where none may be shown
    test: str  # name of the tests

    @property
    def domains(self) -> tuple[str, ...]:
        """Of the source."""
        return tuple(dict.fromkeys(name.partition(":")[0] for name in self.names))

    @property
    def part(self) -> Part:
        return self.task.parts["train"]

    @torch.no_grad()
    def source_outputs(self, model: Network) -> tuple[Tensor, Tensor]:
        """Outputs [N, classes] for the source, of which pictures are augmented by the same draws, and given classes."""
        model.eval()
        chunks = torch.arange(self.source).split(50)
        drawn = (self.part.draw(chosen, torch.Generator().manual_seed(0)) for chosen in chunks)
        outputs, given = zip(*((model(inputs), targets) for inputs, targets in drawn), strict=True)
        return torch.cat(outputs), torch.cat(given)

    def held_out(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and classes of some labels; pictures are augmented as in training, by the same draws for all."""
        return self.part.draw(self.source + labels, torch.Generator().manual_seed(0))


class Data:
    """All problems, made when they are asked for."""

    def __init__(self, config: Config, cache_folder: Path, progress: Progress) -> None:
        self._config, self._folder, self._progress = config, cache_folder, progress
        self.problem = cache(self._problem)

    def first(self) -> dict[Name, Problem]:
        return {name: self.problem(name, self._config.seeds[0], self._config.labels) for name in self._config.tasks}

    def fingerprint(self) -> str:
        return " ".join(problem.task.fingerprint() for problem in self.first().values())

    def about(self) -> dict:
        return {
            name: {
                "source": p.source, "labels": p.labels, "groups": list(p.names), "metric": p.task.metric,
                "tests": len(p.task.tests[p.test].labels),  # pyright: ignore[reportAttributeAccessIssue]
            }
            for name, p in self.first().items()
        }  # fmt: skip

    def _problem(self, name: Name, seed: int, count: int) -> Problem:
        return (self._texts if name in TEXTS else self._pictures)(name, seed, count)

    def _texts(self, name: Name, seed: int, count: int) -> Problem:
        from experiments.language.data import Texts
        from experiments.language.model import minilm, tokenizer
        from experiments.language.task import LanguageTask

        found, target = opinions(Path(self._config.archive)), name.removeprefix("wrong ")
        sources = [target] if name in WRONG else [topic for topic in FILES if topic != target]
        topics = torch.tensor([list(FILES).index(topic) for topic in found.topics])
        chosen: dict[str, list[Tensor]] = {"source": [], "labels": [], "test": []}
        for topic in FILES:
            for label in range(len(SENTIMENTS)):
                own = ((topics == list(FILES).index(topic)) & (found.labels == label)).nonzero().flatten()
                order = iter(own[torch.randperm(len(own), generator=generator("texts", seed, topic, label))].tolist())
                if topic == target:
                    sizes = {"test": TESTED, "labels": count // 3 + (label < count % 3)}
                    if len(own) <= sum(sizes.values()):
                        raise InputError(f"{count} labels: there are only {len(own)} {topic} of one class, tests too")
                    for part, size in sizes.items():
                        chosen[part].append(torch.tensor([next(order) for _ in range(size)]))
                if topic in sources:
                    chosen["source"].append(torch.tensor(list(order)[: self._config.per_class]))
        index = {part: torch.cat(some) for part, some in chosen.items()}
        given = true = found.labels[index["source"]]
        if name in WRONG:
            by = torch.randint(len(ANNOTATORS), true.shape, generator=generator("annotators", seed))
            given, drawn = true.clone(), generator("wrong", seed)
            for one, share in enumerate(ANNOTATORS):
                given[by == one] = flipped(true[by == one], len(SENTIMENTS), share, drawn)
            groups, names = by, tuple(f"annotator: {100 * share:.0f} % wrong" for share in ANNOTATORS)
        else:
            domains = torch.tensor([sources.index(found.topics[i]) for i in index["source"].tolist()])
            groups, names = by_class(domains, sources, given, SENTIMENTS)
        places = torch.cat([index["source"], shuffled(index["labels"], seed)])
        token = tokenizer()

        def texts(rows: Tensor, labels: Tensor) -> Texts:
            words = [found.texts[i] for i in rows.tolist()]
            made = token(words, truncation=True, max_length=40, padding="max_length", return_tensors="pt")
            return Texts(made["input_ids"], labels)

        labels = torch.cat([given, found.labels[places[len(given) :]]])
        parts = {"train": texts(places, labels), f"test {target}": texts(index["test"], found.labels[index["test"]])}
        task = LanguageTask(parts, minilm, torch.device("cpu"), bf16=True)
        right = given == true if name in WRONG else None
        return Problem(task, len(given), count, groups, names, right, None, target)

    def _pictures(self, name: Name, seed: int, count: int) -> Problem:
        if name == "poly":
            pictures = cell_pictures()
            mono, poly = (pictures.of_domain(number) for number in range(2))
            order = torch.randperm(len(poly.items), generator=generator("cells", seed))
            limit = self._config.limit
            source = mono.select(torch.arange(len(mono.items))[:limit])
            out = max(self._config.all_labels)  # the tests are the same for all numbers of labels
            test, labels = poly.select(order[out:][:limit]), poly.select(order[:count])
        else:
            emoji = emoji_pictures(self._folder, self._progress).of_domain(0)
            emoji = replace(emoji, domain_names=emoji.domain_names[:1])
            if self._config.limit is not None:
                emoji = limit_items(emoji, self._config.limit, seed)
            labels, source, test = split(emoji, seed, SHARES).values()
            if len(labels.items) < count:
                raise InputError(f"{count} labels: of the emoji only {len(labels.items)} are for that")
            labels = labels.select(shuffled(torch.arange(len(labels.items)), seed)[:count])
        given, right, shown = source.labels, None, None
        if name in WRONG:
            given = flipped(given, len(source.classes), NOISE, generator("wrong", seed))
            right, shown = given == source.labels, tuple(map(character, source.items))
        own = test.domains[0].item()
        test = replace(test, domains=0 * test.domains, domain_names=(test.domain_names[int(own)],))
        parts = {"train": joined(replace(source, labels=given), labels), "test": test}
        task = ClassificationTask(parts, device=torch.device("cpu"), by_class=name == "poly")
        groups, names = by_class(0 * given, [source.domain_names[int(source.domains[0])]], given, source.classes)
        return Problem(task, len(given), count, groups, names, right, shown, test.domain_names[0])


def by_class(
    domains: Tensor, names: Sequence[str], given: Tensor, classes: Sequence[str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Groups [N] by domain and class as it is given, and their names."""
    return domains * len(classes) + given, tuple(f"{domain}: {label}" for domain in names for label in classes)


def character(code: str) -> str:
    """An emoji from its code points."""
    return "".join(chr(int(point, 16)) for point in code.split("-"))


def joined(one: Pictures, other: Pictures) -> Pictures:
    fields = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in ("images", "labels", "domains")}
    return replace(one, **fields, items=one.items + other.items, groups=one.groups + other.groups)


def shuffled(index: Tensor, seed: int) -> Tensor:
    return index[torch.randperm(len(index), generator=generator("labels", seed))]
