"""The memory of one product with second derivatives, and of a plain gradient, by the length of the sequences.

Of MiniLM-L6, or of an encoder of twelve layers of width 128 with weights drawn at random (``--net deep``). Each
figure is that of a process of its own, above what it holds with the network loaded, and is measured twice: the largest
resident set, and the most that torch's allocator has given out. "today" is ``create_graph=True``; "remat" has the
layers go through ``hft.remat_layers``. Prints Markdown; writes JSON and a figure.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_ftp as hft
from experiments.common.memory import peak_above
from experiments.common.report_kit import markdown

from ..measure import allocated, machine, options, write
from ..worker import Worker, answering
from .nets import minilm
from .task import Encoder, drawn, losses_of

KINDS = ("gradient", "today", "remat")
WORDS = 1000  # of the deep encoder


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, src_key_padding_mask=~mask[:, 0, 0])


def deep() -> tuple[Encoder, int]:
    """Twelve layers of width 128."""
    torch.manual_seed(0)
    return Encoder(nn.Embedding(WORDS, 128), [_Block(128) for _ in range(12)], 128), WORDS


NETS = {"minilm": minilm, "deep": deep}


def measured(name: str, kind: str, size: int, length: int, by_allocator: bool) -> dict[str, float]:
    """Bytes, and seconds."""
    net, words = NETS[name]()
    params = {key: p.detach() for key, p in net.named_parameters()}
    train_loss, _ = losses_of(net)
    if kind == "remat":
        hft.remat_layers(net, "layers.*")

    def call(size: int, length: int) -> Any:
        batch = drawn(words, 1, size, length).batches[0]
        at = {key: p.detach().requires_grad_() for key, p in params.items()}
        weight = torch.zeros(size, requires_grad=True)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            loss = train_loss(at, batch, {"weight": weight})
            grads = torch.autograd.grad(loss, [*at.values()], create_graph=kind != "gradient")
            if kind == "gradient":
                return grads
            return torch.autograd.grad(grads, [*at.values(), weight], [*params.values()])

    call(1, 8)  # what is made once
    if by_allocator:
        return {"bytes": allocated(lambda: call(size, length))[0]}
    begin = time.perf_counter()
    _, mib = peak_above(torch.device("cpu"), lambda: call(size, length))
    return {"bytes": 2**20 * mib, "seconds": time.perf_counter() - begin}


def row_of(job: dict[str, Any], threads: int) -> dict[str, float]:
    """Of each way to measure a process."""
    found: dict[str, float] = {}
    for key in ("resident", "allocated"):
        words = json.dumps({**job, "by_allocator": key == "allocated"})
        with Worker("benchmarks.large.product", words, threads=threads, HF_HUB_OFFLINE="1") as worker:
            answer = worker.answer()
        found[key] = answer.pop("bytes")
        found |= answer
    return found


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    head = ["tokens", "gradient", *(f"{kind}, of a gradient" for kind in KINDS[1:]), "time, of a gradient"]
    lines = []
    for length, row in rows.items():
        base = row["gradient"]
        others = [row[kind] for kind in KINDS[1:] if kind in row]
        cells = [
            f"{x['resident'] / 2**20:.0f} ({x['allocated'] / 2**20:.0f}) MiB, {x['resident'] / base['resident']:.2f} "
            f"({x['allocated'] / base['allocated']:.2f})"
            for x in others
        ]
        times = " and ".join(f"{x['seconds'] / base['seconds']:.1f}" for x in others if "seconds" in {*x} & {*base})
        lines.append([length, f"{base['resident'] / 2**20:.0f} ({base['allocated'] / 2**20:.0f}) MiB", *cells, times])
    return "\n".join(markdown(head, lines))


def draw(rows: dict[str, dict[str, dict[str, float]]], title: str, out: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes, names = figure.subplots(), ("plain training's gradient", "a product", "a product, with remat")
    for kind, name in zip(KINDS, names, strict=True):
        lengths = [int(length) for length, row in rows.items() if kind in row]
        axes.plot(lengths, [rows[str(n)][kind]["resident"] / 2**20 for n in lengths], marker="o", label=name)
    axes.set(xlabel="tokens of a sequence", ylabel="peak, MiB", title=title, ylim=(0, None))
    axes.legend()
    figure.savefig(out, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "product_cpu.json")
    parser.add_argument("--net", choices=list(NETS), default="minilm")
    parser.add_argument("--size", type=int, default=32, help="examples in a batch (default: 32)")
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128, 192], help="tokens (default: 64 128 192)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="these only")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    own = record.setdefault(args.net, {"size": args.size, "rows": {}})
    own["machine"] = {**machine(), "threads": args.threads}
    for length in args.lengths:
        row = own["rows"].setdefault(str(length), {})
        for kind in args.kinds:
            job = {"name": args.net, "kind": kind, "size": args.size, "length": length}
            row[kind] = row_of(job, args.threads)
            write(args.out, record)
    own["rows"] = dict(sorted(own["rows"].items(), key=lambda pair: int(pair[0])))
    write(args.out, record)
    title = f"{'MiniLM-L6' if args.net == 'minilm' else 'twelve layers of width 128'}, {args.size} sequences"
    draw(own["rows"], title, args.out.with_name(f"product_{args.net}.png"))
    print(table(own["rows"]))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        with answering() as say:
            say(measured(**json.loads(sys.argv[1])))
    else:
        main()
