"""Write a random llama-shaped bf16 checkpoint, 1.1 billion parameters by default, to measure speed and memory on.

Every matrix is a product of random factors with a power-law scale plus noise, so that its spectrum decays the way
trained ones do and low-rank passes have something to find. Tensors are made and written one at a time; each has its own
seed, drawn from `--seed` and its name, so that a tensor does not depend on the others or on the sharding.
"""

import argparse
import json
import re
import shutil
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer

BYTES_PER_WEIGHT = 2
RANK, DECAY, NOISE = 128, 0.7, 0.3
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def size(text: str) -> int:
    """Bytes in a size such as 500MB or 1GiB."""
    match = re.fullmatch(r"(\d+)([KMG]i?B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB")
    return int(match[1]) * UNITS[match[2] or ""]


def shapes_of(args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the order of the forward pass."""
    kv_rows = args.hidden // args.heads * args.kv_heads
    layer = {
        "input_layernorm": (args.hidden,),
        "self_attn.q_proj": (args.hidden, args.hidden),
        "self_attn.k_proj": (kv_rows, args.hidden),
        "self_attn.v_proj": (kv_rows, args.hidden),
        "self_attn.o_proj": (args.hidden, args.hidden),
        "post_attention_layernorm": (args.hidden,),
        "mlp.gate_proj": (args.intermediate, args.hidden),
        "mlp.up_proj": (args.intermediate, args.hidden),
        "mlp.down_proj": (args.hidden, args.intermediate),
    }
    shapes = {"model.embed_tokens.weight": (args.vocab, args.hidden)}
    for index in range(args.layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (args.hidden,), "lm_head.weight": (args.vocab, args.hidden)}


def bytes_of(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * BYTES_PER_WEIGHT


def shards_of(shapes: dict[str, tuple[int, ...]], limit: int) -> list[list[str]]:
    """Names in order, as many to a shard as fit; a tensor over the limit has a shard to itself."""
    shards, used = [[]], 0
    for name, shape in shapes.items():
        if shards[-1] and used + bytes_of(shape) > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += bytes_of(shape)
    return shards


def weights(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The values of one tensor: norm gains near one, matrices that keep the variance of their input."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    if len(shape) == 1:
        return (1 + 0.1 * torch.randn(shape, generator=generator)).bfloat16()
    rows, columns = shape
    scale = torch.arange(1, min(RANK, rows, columns) + 1).pow(-DECAY)
    scale *= ((1 - NOISE) / columns) ** 0.5 / scale.norm()
    left = torch.randn(rows, len(scale), generator=generator) * scale
    right = torch.randn(len(scale), columns, generator=generator)
    noise = torch.randn(shape, generator=generator)
    return noise.addmm_(left, right, beta=(NOISE / columns) ** 0.5).bfloat16()


def write_shard(path: Path, names: list[str], shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """A safetensors file: the header's length, the header padded to 8 bytes, the tensors in its order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + bytes_of(shapes[name])
        header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(weights(name, shapes[name], seed).view(torch.int16).numpy())


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def config_of(args: argparse.Namespace) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": args.intermediate,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.hidden // args.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--max-shard-size", type=size, default="1GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="a model folder to copy the tokenizer from")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} exists")
    if args.hidden % args.heads or args.heads % args.kv_heads:
        parser.error("--heads must divide --hidden, and --kv-heads must divide --heads")
    if args.tokenizer:
        tokens = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json")).get_vocab_size()
        if tokens > args.vocab:
            parser.error(f"the tokenizer has {tokens} tokens, more than --vocab {args.vocab}")

    args.out.mkdir(parents=True)
    shapes = shapes_of(args)
    shards = shards_of(shapes, args.max_shard_size)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(args.out / file, names, shapes, args.seed)
        weight_map |= dict.fromkeys(names, file)
    total = sum(map(bytes_of, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(args.out / "model.safetensors.index.json", index)
    write_json(args.out / "config.json", config_of(args))
    if args.tokenizer:
        for file in TOKENIZER_FILES:
            if (args.tokenizer / file).exists():
                shutil.copyfile(args.tokenizer / file, args.out / file)
    print(f"{total // BYTES_PER_WEIGHT} parameters, {total} bytes, {len(shards)} shards")


if __name__ == "__main__":
    main()
