"""A synthetic stack of any size, to time what cuts it: llama blocks of 4096 / 14336 with made-up blocks.

usage: python3 scripts/random_stack.py FOLDER [LAYERS [LEVELS]]     default: 8 layers, 13 levels, 3.4 GB

Every value is finite and means nothing; the order is level by level.
"""

import json
import struct
import sys
from pathlib import Path

HIDDEN, WIDE, KV, VOCABULARY, RANK = 4096, 14336, 1024, 32000, 16
BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
# Bytes that are finite whatever they are read as.
FILL = b"\x3c" * (8 << 20)


def linears(layers):
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV, HIDDEN),
        "self_attn.v_proj": (KV, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    for layer in range(layers):
        for name, shape in shapes.items():
            yield f"model.layers.{layer}.{name}", *shape


def tensors(layers, levels):
    yield "model.embed_tokens.weight", "BF16", [VOCABULARY, HIDDEN]
    yield "model.norm.weight", "BF16", [HIDDEN]
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", "BF16", [HIDDEN]
    for name, _, columns in linears(layers):
        yield f"{name}.scale", "F32", [columns]
    for level in range(levels):
        for name, rows, columns in linears(layers):
            yield f"{name}.{level}.sign", "U8", [rows, columns // 8]
            yield f"{name}.{level}.u", "F16", [rows, RANK]
            yield f"{name}.{level}.v", "F16", [RANK, columns]


def main():
    folder = Path(sys.argv[1])
    layers, levels = (int(n) for n in (*sys.argv[2:], *("8", "13")[len(sys.argv) - 2:]))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors(layers, levels):
        start = end
        end += BYTES[dtype]
        for side in shape:
            end = start + (end - start) * side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for first in range(0, end, len(FILL)):
            file.write(FILL[: min(len(FILL), end - first)])
    names = [name for name, _, _ in linears(layers)]
    stored = {"kind": "stack", "rank": RANK, "levels": levels}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": WIDE, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "torch_dtype": "bfloat16",
        "bantam": {"version": 1, "sites": dict.fromkeys(names, stored),
                   "order": list(range(len(names))) * levels},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{folder}: {end} bytes")


if __name__ == "__main__":
    main()
