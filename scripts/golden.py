"""Write the golden checkpoints: small random models and the logits transformers computes for them in f32.

Each case becomes a folder with `config.json`, the weights under their Hugging Face names, and `golden.safetensors`
holding `input_ids` (i64 [2, T]) and `logits` (f32 [2, T, vocab]). The logits come from the folder as it lies on disk,
loaded back through transformers, and must equal those of the model in memory bit for bit: that is what shows that a
hand-written spelling of the config means the same. A case that exists for one setting (a rope scaling, a window) also
names rivals without that setting, whose logits must differ, so that no case passes for a decoder that ignores it.
"""

import argparse
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

Config = dict[str, object]

BATCH, LENGTH = 2, 39
CASE_LIMIT, TOTAL_LIMIT = 250_000, 4_500_000
ROUTING_MARGIN = 1e-5
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
GAINS = {"q_proj": 1.6, "k_proj": 1.6, "gate.": 2.0, "lm_head": 2.0, "qkv_proj": 1.6, "query_key_value": 1.6,
         "c_attn": 1.6}
EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe")

BASE = Config(hidden_size=32, intermediate_size=53, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=97, max_position_embeddings=128, rms_norm_eps=1e-5)
LLAMA = BASE | Config(model_type="llama", head_dim=12)
MISTRAL = BASE | Config(model_type="mistral", head_dim=10)
QWEN2 = BASE | Config(model_type="qwen2", hidden_size=40, intermediate_size=43, vocab_size=101, rms_norm_eps=1e-6)
QWEN3 = BASE | Config(model_type="qwen3", hidden_size=36, num_attention_heads=6, num_key_value_heads=3, head_dim=10,
                      vocab_size=103, rms_norm_eps=0.1, tie_word_embeddings=True)
QWEN3_MOE = BASE | Config(model_type="qwen3_moe", head_dim=12, num_experts=5, num_experts_per_tok=2,
                          moe_intermediate_size=19)
QWEN2_WINDOW = Config(num_hidden_layers=3, intermediate_size=27, use_sliding_window=True, sliding_window=5,
                      max_window_layers=1)
YARN = Config(rope_type="yarn", rope_theta=50.0, factor=4.0, original_max_position_embeddings=16)
YARN_CUSTOM = YARN | Config(attention_factor=1.3, beta_fast=1.5, beta_slow=0.2)
DEFAULT_ROPE = Config(rope_parameters=Config(rope_type="default", rope_theta=50.0))
PHI3 = BASE | Config(model_type="phi3", hidden_size=36, num_attention_heads=6, num_key_value_heads=3, head_dim=10,
                     vocab_size=89, rms_norm_eps=1e-2, bos_token_id=0, eos_token_id=2,
                     pad_token_id=0)
GPT_NEOX = Config(model_type="gpt_neox", hidden_size=40, intermediate_size=47, num_hidden_layers=2,
                  num_attention_heads=4, vocab_size=91, max_position_embeddings=64, layer_norm_eps=0.1)
STARCODER2 = Config(model_type="starcoder2", hidden_size=36, intermediate_size=45, num_hidden_layers=2,
                    num_attention_heads=6, num_key_value_heads=2, vocab_size=93, max_position_embeddings=64,
                    norm_epsilon=0.1, bos_token_id=0, eos_token_id=2)
GEMMA2 = BASE | Config(model_type="gemma2", num_hidden_layers=3, hidden_size=36, intermediate_size=41, head_dim=10,
                       vocab_size=87, rms_norm_eps=1e-2, query_pre_attn_scalar=5, sliding_window=7,
                       attn_logit_softcapping=2.0, final_logit_softcapping=25.0)
GPT_BIGCODE = Config(model_type="gpt_bigcode", n_embd=35, n_head=5, n_layer=2, n_inner=51, n_positions=41,
                     vocab_size=95, layer_norm_epsilon=0.1, bos_token_id=0, eos_token_id=2)
LONGROPE = Config(rope_type="longrope", rope_theta=50.0, partial_rotary_factor=0.5, short_factor=[1.0, 1.7, 2.5],
                  long_factor=[1.5, 4.0, 9.0])
LONG_PHI3 = PHI3 | Config(num_attention_heads=3, head_dim=12, rope_parameters=LONGROPE)
EVERY_LAYER_SLIDES, NO_LAYER_SLIDES = Config(max_window_layers=0), Config(use_sliding_window=False)


def v4_spelling(config: Config) -> Config:
    """The same settings as transformers 4 wrote them."""
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    return config


def v4_linear(config: Config) -> Config:
    """Older still: the kind of scaling under `type`."""
    config = v4_spelling(config)
    scaling = config["rope_scaling"]
    config["rope_scaling"] = {"type": scaling["rope_type"], "factor": scaling["factor"]}
    return config


def v4_partial(config: Config) -> Config:
    """As transformers 4 wrote partial rotary: the share beside the base, under the family's own names in GPT-NeoX."""
    rope = dict(config.pop("rope_parameters"))
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    base, share = rope["rope_theta"], rope["partial_rotary_factor"]
    if config["model_type"] == "gpt_neox":
        return config | {"rotary_emb_base": base, "rotary_pct": share}
    return config | {"rope_theta": base, "partial_rotary_factor": share, "rope_scaling": None}


def v4_longrope(config: Config) -> Config:
    """LongRoPE as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    factors = {key: rope[key] for key in ("short_factor", "long_factor")}
    config["torch_dtype"] = config.pop("dtype")
    return config | {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"],
                     "rope_scaling": {"type": "longrope"} | factors}


def with_defaults(*names: str) -> Callable[[Config], Config]:
    """Leave out keys whose defaults have to be known."""
    return lambda config: {key: value for key, value in config.items() if key not in names}


def without_rope(config: Config) -> Config:
    """Say nothing about rope, so that the default base has to be known."""
    del config["rope_parameters"]
    return config


@dataclass(frozen=True)
class Case:
    """One golden folder: its settings, how they are spelled and stored, and settings it must not be mistaken for."""

    name: str
    config: Config
    spelling: Callable[[Config], Config] | None = None
    rivals: tuple[Config, ...] = ()
    dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    weights_of: str | None = None


CASES = [
    Case("llama", LLAMA),
    Case("llama-bias", LLAMA | Config(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    Case("llama-rope-llama3",
         LLAMA | Config(max_position_embeddings=256,
                        rope_parameters=Config(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
                                               high_freq_factor=4.0, original_max_position_embeddings=32)),
         v4_spelling, rivals=(Config(rope_parameters=Config(rope_type="default", rope_theta=100.0)),)),
    Case("llama-rope-linear",
         LLAMA | Config(rope_parameters=Config(rope_type="linear", rope_theta=50.0, factor=2.5)),
         v4_linear, rivals=(DEFAULT_ROPE,)),
    Case("llama-rope-yarn", LLAMA | Config(max_position_embeddings=64, rope_parameters=YARN), rivals=(DEFAULT_ROPE,)),
    Case("qwen3-rope-yarn",
         QWEN3 | Config(max_position_embeddings=64, head_dim=16, intermediate_size=29, rope_parameters=YARN_CUSTOM),
         rivals=(Config(rope_parameters=YARN),)),
    Case("qwen3-rope-yarn-untruncated",
         QWEN3 | Config(max_position_embeddings=64, head_dim=16, intermediate_size=29,
                        rope_parameters=YARN_CUSTOM | Config(truncate=False)),
         rivals=(Config(rope_parameters=YARN_CUSTOM),)),
    Case("mistral", MISTRAL | Config(sliding_window=7), rivals=(Config(sliding_window=None),)),
    Case("mistral-full", MISTRAL | Config(sliding_window=None), without_rope),
    Case("qwen2", QWEN2),
    Case("qwen2-sliding", QWEN2 | QWEN2_WINDOW, rivals=(EVERY_LAYER_SLIDES, NO_LAYER_SLIDES)),
    Case("qwen2-sliding-v4", QWEN2 | QWEN2_WINDOW, v4_spelling, rivals=(EVERY_LAYER_SLIDES, NO_LAYER_SLIDES)),
    Case("qwen3", QWEN3, rivals=(Config(rms_norm_eps=1e-6),)),
    Case("qwen3-moe", QWEN3_MOE | Config(norm_topk_prob=True), rivals=(Config(norm_topk_prob=False),)),
    Case("qwen3-moe-mixed", QWEN3_MOE | Config(norm_topk_prob=False, mlp_only_layers=[0], head_dim=8), v4_spelling,
         rivals=(Config(norm_topk_prob=True),)),
    Case("phi3", PHI3 | Config(num_key_value_heads=6), rivals=(Config(rms_norm_eps=1e-5),)),
    Case("phi3-partial-sliding",
         PHI3 | Config(sliding_window=6, rope_parameters=Config(rope_type="default", rope_theta=50.0,
                                                               partial_rotary_factor=0.4)),
         v4_partial,
         rivals=(Config(sliding_window=None),
                 Config(rope_parameters=Config(rope_type="default", rope_theta=50.0, partial_rotary_factor=0.8)))),
    Case("phi3-longrope-short",
         LONG_PHI3 | Config(original_max_position_embeddings=64),
         rivals=(Config(original_max_position_embeddings=32), Config(max_position_embeddings=64))),
    Case("phi3-longrope-long",
         LONG_PHI3 | Config(original_max_position_embeddings=32), v4_longrope,
         rivals=(Config(original_max_position_embeddings=64),)),
    Case("phi3-bf16", PHI3, dtype=torch.bfloat16),
    Case("gpt-neox", GPT_NEOX, without_rope,
         rivals=(Config(use_parallel_residual=False), Config(rotary_pct=0.5), Config(layer_norm_eps=1e-6))),
    Case("gpt-neox-sequential",
         GPT_NEOX | Config(use_parallel_residual=False, rotary_pct=0.6, rotary_emb_base=60, hidden_act="gelu_new",
                           attention_bias=False, num_attention_heads=5),
         v4_partial,
         rivals=(Config(use_parallel_residual=True), Config(rotary_pct=1.0), Config(rotary_emb_base=10000))),
    Case("starcoder2", STARCODER2, with_defaults("tie_word_embeddings", "use_bias"),
         rivals=(Config(use_bias=False), Config(norm_epsilon=1e-6))),
    Case("starcoder2-sliding",
         STARCODER2 | Config(sliding_window=5, use_bias=False, hidden_act="gelu", tie_word_embeddings=False),
         v4_spelling, rivals=(Config(sliding_window=None),)),
    Case("gemma2", GEMMA2, with_defaults("tie_word_embeddings", "layer_types"),
         rivals=(Config(layer_types=["full_attention"] * 3),
                 Config(layer_types=["full_attention", "sliding_attention", "full_attention"]),
                 Config(attn_logit_softcapping=None), Config(final_logit_softcapping=None),
                 Config(query_pre_attn_scalar=10))),
    Case("gemma2-bf16", GEMMA2, dtype=torch.bfloat16),
    Case("gemma2-uncapped",
         GEMMA2 | Config(attn_logit_softcapping=None, final_logit_softcapping=None, hidden_activation="gelu",
                         layer_types=["full_attention", "full_attention", "sliding_attention"], attention_bias=True),
         rivals=(Config(attn_logit_softcapping=2.0), Config(final_logit_softcapping=25.0),
                 Config(layer_types=["sliding_attention"] * 3))),
    Case("gpt-bigcode", GPT_BIGCODE, with_defaults("tie_word_embeddings", "multi_query", "activation_function"),
         rivals=(Config(layer_norm_epsilon=1e-6), Config(scale_attn_weights=False))),
    Case("gpt-bigcode-multi-head",
         GPT_BIGCODE | Config(multi_query=False, scale_attn_weights=False, n_inner=None, n_head=7,
                              activation_function="gelu", tie_word_embeddings=False),
         rivals=(Config(scale_attn_weights=True),)),
    Case("llama-bf16", LLAMA, dtype=torch.bfloat16, weights_of="llama"),
    Case("llama-sharded", LLAMA, shard_size="25KB"),
]


def build(config: Config, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """An f32 model with weights of this seed, representable in `dtype`.

    They are far enough from zero that attention, norms and biases all matter.
    """
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), **EAGER).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif weight.dim() == 1:
                # What gemma stores is added to 1.
                weight.copy_((config["model_type"] != "gemma2") + 0.25 * noise)
            elif any(table in name for table in EMBEDDINGS):
                weight.copy_(noise)
            else:
                gain = next((gain for part, gain in GAINS.items() if part in name), 1.2)
                weight.copy_(gain * noise / weight.shape[-1] ** 0.5)
            weight.copy_(weight.to(dtype))
    return model


def logits_of(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids, use_cache=False).logits


def routing_margin(model: PreTrainedModel, input_ids: torch.Tensor) -> float:
    """The smallest gap between the last expert chosen and the first one not, over all tokens and layers."""
    with torch.inference_mode():
        router_logits = model(input_ids, use_cache=False, output_router_logits=True).router_logits
    top_k = model.config.num_experts_per_tok
    gaps = [layer.softmax(-1).sort(-1, descending=True).values for layer in router_logits]
    return min((gap[:, top_k - 1] - gap[:, top_k]).min().item() for gap in gaps)


def write(case: Case, folder: Path) -> str:
    """Write one case and return a line about it; raises if the case would not show what it is for."""
    seed = zlib.crc32((case.weights_of or case.name).encode())
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(case.config["vocab_size"], (BATCH, LENGTH), generator=generator)
    model = build(case.config, seed, case.dtype)
    expected = logits_of(model, input_ids)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.shard_size)
    (folder / "generation_config.json").unlink()
    if case.spelling is not None:
        path = folder / "config.json"
        config = case.spelling(json.loads(path.read_text()))
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **EAGER).eval()
    logits = logits_of(loaded, input_ids)
    span = (logits.max() - logits.min()).item()
    if not torch.equal(logits, expected):
        raise ValueError(f"{case.name}: the folder does not give the logits of the model it was written from")
    for rival in case.rivals:
        other = logits_of(build(case.config | rival, seed), input_ids)
        if (other - logits).abs().max().item() < 0.01 * span:
            raise ValueError(f"{case.name}: {rival} gives nearly the same logits")
    if "num_experts" in case.config and routing_margin(loaded, input_ids) < ROUTING_MARGIN:
        raise ValueError(f"{case.name}: a routing decision is too close to call in f32, take another seed")

    save_file({"input_ids": input_ids, "logits": logits}, folder / "golden.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > CASE_LIMIT:
        raise ValueError(f"{case.name}: {size} bytes, over {CASE_LIMIT}")
    noise = (logits_of(loaded.double(), input_ids) - logits).abs().max().item() / span
    return f"{case.name:28} {size:7} bytes  logits {logits.min():7.2f} .. {logits.max():6.2f}  f32 noise {noise:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests/fixtures/golden")
    parser.add_argument("cases", nargs="*", help="names of the cases to write; all of them if none is given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    unknown = set(args.cases) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    for case in CASES:
        if not args.cases or case.name in args.cases:
            folder = args.out / case.name
            shutil.rmtree(folder, ignore_errors=True)
            print(write(case, folder))
    total = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{total} bytes in all")
    if total > TOTAL_LIMIT:
        raise ValueError(f"{total} bytes in all, over {TOTAL_LIMIT}")


if __name__ == "__main__":
    main()
