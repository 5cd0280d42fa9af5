"""What benches/gpu.rs measures, in PyTorch on the same device: one JSON object with the same names.

The same work is written as it is usually written: Gram matrices of chunks in f32 added up in f64, `torch.linalg` in
f64, cuBLAS for products, the fused losses, norms and attention that PyTorch has. The block goes through LoRD the
plain way, with `eigh` of every linear's outputs, and once more (`lord_block_small_side`) with the smaller eigenproblem
that bantam solves for a linear that is taller than wide. A figure is of the best of some rounds, as in the bench.
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
    from safetensors import safe_open
except ImportError as error:
    print(f"nothing to compare with: {error}", file=sys.stderr)
    sys.exit(3)

# As benches/gpu/bench.rs has them.
ROUND, MOST_CALLS, WARM_UP, LONG, PAIRS, TILE = 0.02, 500, 0.05, 0.5, 8, 16384
CHUNK = 1024
EPS = 1e-5
LINEARS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_o": "self_attn.o_proj", "mlp_gate": "mlp.gate_proj", "mlp_up": "mlp.up_proj", "mlp_down": "mlp.down_proj",
}


@dataclass
class Sizes:
    """As benches/gpu/sizes.rs has them."""

    tokens: int = 8192
    window: int = 2048
    hidden: int = 4096
    wide: int = 14336
    rank: int = 1024
    heads: tuple[int, int, int] = (32, 8, 128)
    loss_rows: int = 4096
    vocabulary: int = 8 * TILE
    narrow: int = 1024
    copied: int = 1 << 30
    square: int = 8192


SMALL = Sizes(64, 32, 64, 96, 16, (4, 2, 32), 8, 1000, 32, 1 << 16, 64)


class Peers:
    """A device under measurement, and the figures so far."""

    def __init__(self, device: torch.device, sizes: Sizes, rounds: int, until: float) -> None:
        self.device, self.sizes, self.rounds, self.until = device, sizes, rounds, until
        self.figures: dict[str, dict[str, object]] = {}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype)

    def timed(self, work: Callable[[], object]) -> tuple[float, object]:
        """Seconds of one call, and what it made."""
        self.wait()
        start = time.perf_counter()
        made = work()
        self.wait()
        return time.perf_counter() - start, made

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one call: the mean of the best round."""

        def repeated(count: int) -> float:
            return self.timed(lambda: [work() is None for _ in range(count)])[0] / count

        repeated(1)
        once = repeated(1)
        if self.rounds == 1:
            return once
        if once > LONG:
            return min(once, repeated(1))
        calls = lambda seconds: max(1, min(MOST_CALLS, math.ceil(seconds / once)))  # noqa: E731
        repeated(calls(WARM_UP))
        return min(repeated(calls(ROUND)) for _ in range(self.rounds))

    def add(self, name: str, value: float, unit: str, note: str = "") -> None:
        print(f"{name:30} {value:14.6f} {unit}   {note}", file=sys.stderr)
        self.figures[name] = {"value": value, "unit": unit, "note": note}

    def operations(self, name: str, count: float, work: Callable[[], object]) -> None:
        self.add(name, count / self.seconds(work) / 1e12, "TFLOP/s")

    def bytes(self, name: str, count: float, work: Callable[[], object]) -> None:
        self.add(name, count / self.seconds(work) / 1e9, "GB/s")

    def time(self, name: str, work: Callable[[], object]) -> None:
        self.add(name, self.seconds(work), "s")


def add_gram(moment: torch.Tensor, x: torch.Tensor) -> None:
    """`moment += xᵀ x`, products in f32, sums in f64."""
    for rows in x.split(CHUNK):
        moment += (rows.T @ rows).double()


def limits(peers: Peers) -> None:
    source = peers.random(peers.sizes.copied // 4)
    peers.bytes("copy", 2 * peers.sizes.copied, source.clone)
    n = peers.sizes.square
    for name, dtype in (("matmul_bf16", torch.bfloat16), ("matmul_f32", torch.float32)):
        a, b = peers.random(n, n, dtype=dtype), peers.random(n, n, dtype=dtype)
        peers.operations(name, 2 * n**3, lambda a=a, b=b: a @ b)


def kernels(peers: Peers) -> None:
    s = peers.sizes
    t, n, m = s.tokens, s.hidden, s.wide
    for name, width in (("gram", n), ("gram_wide", m)):
        x = peers.random(t, width)
        moment = torch.zeros(width, width, device=peers.device, dtype=torch.float64)
        peers.operations(name, t * width * (width + 1), lambda x=x, moment=moment: add_gram(moment, x))
    x, y, weight = peers.random(t, n), peers.random(t, n), peers.random(n)
    peers.bytes("column_sum", 4 * t * n, lambda: x.sum(0, dtype=torch.float64))
    peers.bytes("column_squares", 4 * t * n, lambda: x.square().sum(0, dtype=torch.float64))
    peers.bytes("add", 12 * t * n, lambda: x + y)
    peers.bytes("rms_norm", 8 * t * n, lambda: F.rms_norm(x, (n,), weight, EPS))
    gate, up = peers.random(t, m), peers.random(t, m)
    peers.bytes("silu_mul", 12 * t * m, lambda: F.silu(gate) * up)
    heads, _, d = s.heads
    x, weight = peers.random(t // s.window, s.window, heads, d), peers.random(d)
    angles = peers.random(s.window, d)
    cos, sin = angles.cos(), angles.sin()
    peers.bytes("rope", 8 * t * heads * d, lambda: rope(x, cos, sin))
    peers.bytes("norm_rope", 8 * t * heads * d, lambda: rope(F.rms_norm(x, (d,), weight, EPS), cos, sin))
    x, w = peers.random(t // 2, n), peers.random(m, n, dtype=torch.bfloat16)
    peers.operations("linear_bf16", t * n * m, lambda: F.linear(x.bfloat16(), w).float())
    losses(peers)
    low_rank(peers, "up", m, n)
    low_rank(peers, "down", n, m)


def losses(peers: Peers) -> None:
    rows, vocabulary = peers.sizes.loss_rows, peers.sizes.vocabulary
    logits, targets = peers.random(rows, vocabulary), torch.arange(rows, device=peers.device) * 7 % vocabulary
    with torch.inference_mode():
        loss = lambda: F.cross_entropy(logits, targets, reduction="none")  # noqa: E731
        peers.bytes("cross_entropy", 4 * rows * vocabulary, loss)
    width = min(vocabulary, TILE)
    tile = logits[:, :width].contiguous().requires_grad_()
    loss = F.cross_entropy(tile, targets % width, reduction="sum")
    gradient = lambda: torch.autograd.grad(loss, tile, retain_graph=True)  # noqa: E731
    peers.bytes("cross_entropy_gradient", 8 * rows * width, gradient)


def low_rank(peers: Peers, which: str, m: int, n: int) -> None:
    r, dtype = peers.sizes.rank, torch.bfloat16
    pairs = [(peers.random(m, r, dtype=dtype), peers.random(r, n, dtype=dtype)) for _ in range(PAIRS)]
    x, turn = peers.random(1, n, dtype=dtype), itertools.cycle(pairs)

    def products() -> torch.Tensor:
        u, v = next(turn)
        return F.linear(F.linear(x, v), u)

    with torch.inference_mode():
        peers.bytes(f"two_products_{which}", 2 * r * (m + n), products)
    peers.figures[f"low_rank_matvec_{which}"] = peers.figures[f"two_products_{which}"]


def attention(peers: Peers) -> None:
    (heads, kv_heads, d), t, batch = peers.sizes.heads, peers.sizes.window, 2
    scores = batch * heads * t * (t + 1) / 2
    for name, dtype in (("causal_attention", torch.float32), ("causal_attention_bf16", torch.bfloat16)):
        q, k, v = (peers.random(batch, h, t, d, dtype=dtype).requires_grad_() for h in (heads, kv_heads, kv_heads))
        attend = lambda q=q, k=k, v=v: attended(q, k, v)  # noqa: E731
        with torch.no_grad():
            peers.operations(name, 4 * d * scores, attend)
        if dtype == torch.float32:
            y = attend()
            dy = torch.randn_like(y)
            inputs = (q, k, v)
            gradient = lambda y=y, inputs=inputs: torch.autograd.grad(y, inputs, dy, retain_graph=True)  # noqa: E731
            peers.operations("causal_attention_gradient", 10 * d * scores, gradient)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def decompositions(peers: Peers) -> None:
    n, r, wide = peers.sizes.hidden, peers.sizes.narrow, torch.float64
    x = peers.random(2 * n, n, dtype=wide)
    moment, narrow = x.T @ x / (2 * n), x[:, :r].T @ x[:, :r] / (2 * n)
    tall = peers.random(n, r, dtype=wide)
    peers.time("eigh", lambda: torch.linalg.eigh(moment))
    peers.time("eigh_narrow", lambda: torch.linalg.eigh(narrow))
    peers.time("svd", lambda: torch.linalg.svd(tall.T.contiguous(), full_matrices=False))
    peers.time("qr", lambda: torch.linalg.qr(tall))
    peers.time("cholesky", lambda: torch.linalg.cholesky(moment))


def stacks(peers: Peers) -> None:
    """A linear taken apart as benches/gpu/stacks.rs does it, by randomised and by exact decompositions."""
    m, n, rank, levels, read = peers.sizes.hidden, peers.sizes.wide, 16, 8, 4
    w = peers.random(m, n)

    def randomised() -> None:
        r = w.clone()
        for _ in range(levels):
            u, s, v = torch.svd_lowrank(r.abs(), q=rank + 16, niter=4)
            roots = s[:rank].sqrt()
            u, v = (u[:, :rank] * roots).half().float(), (v[:, :rank] * roots).half().float()
            r -= torch.where(r >= 0, 1.0, -1.0) * (u @ v.T)

    peers.time("stack_decomposition", randomised)
    magnitudes = w.abs()
    once = peers.timed(lambda: torch.linalg.svd(magnitudes, full_matrices=False))[0]
    peers.add("stack_decomposition_by_svd", levels * once, "s", f"{levels} times one decomposition")
    weights = itertools.cycle([peers.random(m, n, dtype=torch.bfloat16) for _ in range(read)])
    x = peers.random(1, n, dtype=torch.bfloat16)
    peers.time("dense_matvec_seconds", lambda: F.linear(x, next(weights)))


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads `[b, t, h, d]` turned by their positions and put first."""
    x = x.transpose(1, 2)
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Block:
    """The first block of a llama checkpoint in bf16, written plainly."""

    def __init__(self, folder: Path, peers: Peers) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.folder, self.device, self.eps = folder, peers.device, config["rms_norm_eps"]
        self.heads, self.hidden = config["num_attention_heads"], config["hidden_size"]
        self.kv_heads = config["num_key_value_heads"]
        self.d = config.get("head_dim") or self.hidden // self.heads
        self.length = min(peers.sizes.window, config["max_position_embeddings"])
        theta = (config.get("rope_parameters") or config)["rope_theta"]
        frequencies = theta ** (-torch.arange(0, self.d, 2, device=self.device) / self.d)
        angles = torch.outer(torch.arange(self.length, device=self.device), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def read(self) -> dict[str, torch.Tensor]:
        prefix, tensors = "model.layers.0.", {}
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "pt", device=str(self.device)) as shard:
                names = [name for name in shard.keys() if name.startswith(prefix)]
                tensors |= {name.removeprefix(prefix): shard.get_tensor(name) for name in names}
        return tensors

    def forward(self, w: dict[str, torch.Tensor], x: torch.Tensor,
                see: Callable[[str, torch.Tensor, torch.Tensor], None] | None = None) -> torch.Tensor:
        """`x [tokens, hidden]`, whole windows; `see` is shown name, input and output of every linear."""

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            y = F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
            if see:
                see(name, x, y)
            return y

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(-1, self.length, y.shape[1] // self.d, self.d)

        h = F.rms_norm(x, (self.hidden,), w["input_layernorm.weight"], self.eps)
        q, k, v = (heads(linear(f"self_attn.{part}_proj", h)) for part in "qkv")
        q, k = rope(q, self.cos, self.sin), rope(k, self.cos, self.sin)
        y = attended(q, k, v.transpose(1, 2)).transpose(1, 2).reshape(len(x), -1)
        x = x + linear("self_attn.o_proj", y)
        h = F.rms_norm(x, (self.hidden,), w["post_attention_layernorm.weight"], self.eps)
        gate, up = linear("mlp.gate_proj", h), linear("mlp.up_proj", h)
        return x + linear("mlp.down_proj", F.silu(gate) * up)


@torch.inference_mode()
def lord(peers: Peers, folder: Path) -> None:
    block, s = Block(folder, peers), peers.sizes
    block.read()
    read, w = peers.timed(block.read)
    x = peers.random(s.tokens // block.length * block.length, block.hidden, dtype=torch.bfloat16)
    chunks = x.split(max(4096 // block.length, 1) * block.length)
    plain = peers.seconds(lambda: [block.forward(w, chunk) is None for chunk in chunks])
    shapes = {name: w[f"{name}.weight"].shape for name in LINEARS.values()}
    tokens, weights = len(x), sum(shape.numel() for shape in shapes.values())
    operations = tokens * (2 * weights + 2 * block.heads * block.d * (block.length + 1))
    peers.add("forward", operations / plain / 1e12, "TFLOP/s", f"{tokens / plain:.0f} tokens/s")
    peers.add("forward_seconds", plain, "s")

    def observed(small_side: bool) -> dict[str, torch.Tensor]:
        """Moments of every linear's outputs, or of the inputs of the tall ones."""
        moments: dict[str, torch.Tensor] = {}

        def see(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
            m, n = shapes[name]
            seen = x if small_side and m > n else y
            if name not in moments:
                order = seen.shape[1]
                moments[name] = torch.zeros(order, order, device=peers.device, dtype=torch.float64)
            add_gram(moments[name], seen.float())

        for chunk in chunks:
            block.forward(w, chunk, see)
        return moments

    for small_side in (True, False):
        forward, moments = peers.timed(lambda: observed(small_side))
        analyses, factors, note = {}, 0.0, ""
        for role, name in LINEARS.items():
            if not small_side and role == "mlp_up" and time.monotonic() > peers.until:
                # Half a minute each, of one shape: where there is no time for both, one counts twice.
                note, analyses[role] = "mlp_up counted as mlp_gate", analyses["mlp_gate"]
                continue
            weight = w[f"{name}.weight"].double()
            tall = small_side and weight.shape[0] > weight.shape[1]
            rank = min(s.rank, (weight.numel() - 1) // sum(weight.shape))
            analyses[role], u = peers.timed(lambda: directions(moments.pop(name) / tokens, weight, rank, tall))
            factors += peers.timed(lambda: (u.float(), (u.T @ weight).float()))[0]
        analysed = sum(analyses.values())
        total = read + forward + analysed + factors
        if small_side:
            peers.add("lord_block_small_side", total, "s", f"{analysed:.3f} s of it analysing")
            continue
        peers.add("forward_with_moments_seconds", forward, "s")
        peers.add("lord_read", read, "s")
        peers.add("lord_gram", max(forward - plain, 0.0), "s")
        peers.add("lord_analyse", analysed, "s")
        for role, seconds in analyses.items():
            peers.add(f"lord_analyse_{role}", seconds, "s")
        peers.add("lord_apply", factors, "s")
        peers.add("lord_rest", max(total - (forward - plain) - analysed, 0.0), "s")
        peers.add("lord_block", total, "s", note)


def directions(moment: torch.Tensor, weight: torch.Tensor, rank: int, tall: bool) -> torch.Tensor:
    """The leading eigenvectors `[m, rank]` of the outputs' moment; of `W G Wᵀ` where `moment` is of the inputs."""
    if not tall:
        return torch.linalg.eigh(moment)[1][:, -rank:]
    # Damped, as it is done where Cholesky needs a definite matrix.
    moment.diagonal().add_(1e-4 * moment.diagonal().mean())
    projected = weight @ torch.linalg.cholesky(moment)
    vectors = torch.linalg.eigh(projected.T @ projected)[1][:, -rank:]
    return torch.linalg.qr(projected @ vectors)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=Path, metavar="DIR", help="a llama whose first block goes through LoRD")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="every size tiny and one round each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40, help="no second of the largest eigenproblems after these")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("nothing to compare on: PyTorch sees no CUDA device", file=sys.stderr)
        sys.exit(3)
    sizes, rounds = (SMALL, 1) if args.small else (Sizes(), args.rounds)
    peers = Peers(torch.device(args.device), sizes, rounds, time.monotonic() + args.seconds)
    torch.manual_seed(0)
    measures = [limits, kernels, attention, stacks, decompositions]
    if args.block:
        measures.insert(0, lambda peers: lord(peers, args.block))
    for measure in measures:
        measure(peers)
        if peers.device.type == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(peers.figures))


if __name__ == "__main__":
    main()
