"""Perplexity of a model folder with transformers and PyTorch in f32 on the CPU: the number and the time to beat.

The protocol is bantam's `windows`: tokenise the text once without adding special tokens, cut it into disjoint windows,
drop the remainder, score every position but a window's first, sum in f64. `seconds` is the forward pass and the loss
only, the best over `--repeat` rounds and over the given batch sizes. With `--bench-bantam` every round also runs
`bantam eval` on the same text, so that the ratio compares times from one run on one machine.
"""

import argparse
import json
import math
import os
import subprocess
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar


def windows_of(model: Path, text: Path, window: int) -> torch.Tensor:
    """The token ids of the text, [windows, window]."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    count = len(ids) // window
    if count == 0:
        raise SystemExit(f"{text} has {len(ids)} tokens, fewer than one window of {window}")
    return torch.tensor(ids[: count * window]).view(count, window)


def losses(model: PreTrainedModel, windows: torch.Tensor, batch: int) -> tuple[torch.Tensor, float]:
    """The loss at every scored position in f64, and the seconds it took."""
    start = time.perf_counter()
    chunks = []
    for ids in windows.split(batch):
        logits = model(ids, use_cache=False).logits[:, :-1]
        chunks.append(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").double())
    return torch.cat(chunks), time.perf_counter() - start


def bantam_eval(bantam: Path, args: argparse.Namespace) -> dict[str, object]:
    """What `bantam eval --json` reports, held to the same number of threads."""
    command = [bantam, "eval", args.model, "--text", args.text, "--window", str(args.window), "--json"]
    environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint folder with tokenizer.json")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="windows a time; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--experts", choices=["eager", "batched_mm", "grouped_mm"],
                        help="how transformers computes experts; its own choice if not given")
    parser.add_argument("--bench-bantam", type=Path, metavar="CMD", help="the bantam binary to race, round by round")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    disable_progress_bar()

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, experts_implementation=args.experts
    ).eval()
    load_seconds = time.perf_counter() - start
    windows = windows_of(args.model, args.text, args.window)

    seconds = {batch: math.inf for batch in args.batch}
    rival = None
    with torch.inference_mode():
        losses(model, windows[: max(args.batch)], max(args.batch))
        for _ in range(args.repeat):
            for batch in args.batch:
                loss, taken = losses(model, windows, batch)
                seconds[batch] = min(seconds[batch], taken)
            if args.bench_bantam:
                run = bantam_eval(args.bench_bantam, args)
                rival = run if rival is None else min(rival, run, key=lambda report: report["seconds"])

    nll = loss.mean().item()
    best = min(seconds, key=seconds.get)
    report = {
        "nll": nll,
        "perplexity": math.exp(nll),
        "tokens": loss.numel(),
        "window": args.window,
        "load_seconds": load_seconds,
        "seconds": seconds[best],
        "batch": best,
        "seconds_by_batch": seconds,
        "threads": args.threads,
    }
    if rival is not None:
        report["bantam_seconds"] = rival["seconds"]
        report["bantam_nll_difference"] = rival["nll"] - nll
        report["pytorch_over_bantam"] = seconds[best] / rival["seconds"]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
