"""Makes the small checkpoints in tests/checkpoints that come with logits and greedy ids computed by transformers.

    pip install torch transformers safetensors
    python tests/golden/checkpoints.py [NAME ...]

Each folder holds `config.json` and the weights as transformers writes them, and

- `expected.safetensors`: `input_ids` i32 [2, 24], `logits` f32 [2, 24, vocab], `greedy_ids` i32 [32]: the first 8 ids of row 0
  followed by 24 greedily generated ones;
- `expected.json`: `loss` (mean next-token cross-entropy over both rows), `min_top2_margin` (the smallest gap between the two
  largest logits over the greedy steps: well above the rounding of f32, so that equal greedy ids are a fair demand),
  `min_routing_margin` (the smallest gap between the last expert chosen and the first left out: above the rounding of bf16, so that
  closeness in bf16 is), versions.

The weights are those in the file (rounded to its dtype first); the computation is float64 where transformers follows the
model's dtype, which leaves its norms, rotary tables and some softmaxes in float32.

The folders `llama`, `qwen3` and `gpt-oss` are not made here: they were made the same way with a vocabulary of 512.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

ROOT = Path(__file__).resolve().parent.parent / "checkpoints"
VOCAB = 256
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    # Small enough that the 32 positions used reach all three bands of the scaling.
    original_max_position_embeddings=32,
)
YARN = dict(
    rope_type="yarn",
    factor=32.0,
    beta_fast=32.0,
    beta_slow=1.0,
    truncate=False,
    original_max_position_embeddings=4096,
)


SMALL = COMMON | dict(hidden_size=32, intermediate_size=48, head_dim=16, tie_word_embeddings=True)


def spec(config, dtype=torch.float32, older_rope=False, shard_size="1GB", mxfp4=False, as_published=True):
    return dict(config=config, dtype=dtype, older_rope=older_rope, shard_size=shard_size, mxfp4=mxfp4, as_published=as_published)


def specs():
    t = transformers
    return {
        "mistral": spec(t.MistralConfig(**COMMON, head_dim=16, sliding_window=8)),
        "qwen2": spec(
            t.Qwen2Config(**COMMON, rope_parameters=dict(rope_type="default", rope_theta=1e6), tie_word_embeddings=True)
        ),
        # The first layer is dense, the second sparse.
        "qwen3_moe": spec(
            t.Qwen3MoeConfig(
                **COMMON,
                head_dim=32,
                num_experts=8,
                num_experts_per_tok=3,
                moe_intermediate_size=32,
                norm_topk_prob=True,
                mlp_only_layers=[0],
            )
        ),
        "mixtral": spec(t.MixtralConfig(**COMMON, head_dim=16, num_local_experts=4, num_experts_per_tok=2)),
        # Experts as transformers 5 has them in memory: one tensor for all gates and ups, one for all downs.
        "qwen3_moe_fused": spec(
            t.Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=False),
            as_published=False,
        ),
        "mixtral_fused": spec(t.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2), as_published=False),
        # Three layers: sliding, sliding, full.
        "gemma3_text": spec(
            t.Gemma3TextConfig(
                **(COMMON | dict(num_hidden_layers=3)),
                head_dim=32,
                query_pre_attn_scalar=24,
                sliding_window=8,
                layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                rope_parameters=dict(
                    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                    sliding_attention=dict(rope_type="default", rope_theta=1e4),
                ),
            )
        ),
        # Both the error function for GELU, and a rotary base that no position here makes grow.
        "llama_gelu": spec(
            t.LlamaConfig(
                **SMALL, hidden_act="gelu", rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=1e4)
            )
        ),
        "llama3_rope": spec(
            t.LlamaConfig(**COMMON, head_dim=16, rope_parameters=LLAMA3 | dict(rope_theta=500000.0)), older_rope=True
        ),
        "sharded": spec(t.LlamaConfig(**COMMON, head_dim=16, tie_word_embeddings=True), torch.bfloat16, shard_size="64KB"),
        "gpt_oss_mxfp4": spec(
            t.GptOssConfig(
                **COMMON | dict(intermediate_size=64),
                head_dim=32,
                num_local_experts=4,
                num_experts_per_tok=2,
                sliding_window=8,
                rope_parameters=YARN | dict(rope_theta=150000.0),
            ),
            torch.bfloat16,
            older_rope=True,
            mxfp4=True,
        ),
    }


def randomise(model, seed):
    """Fills every parameter: norms near their neutral value, matrices large enough that attention and routing matter."""
    generator = torch.Generator().manual_seed(seed)
    offset = 0.0 if model.config.model_type == "gemma3_text" else 1.0
    for name, p in model.named_parameters():
        values = torch.randn(p.shape, generator=generator, dtype=torch.float32)
        if "norm" in name:
            values = offset + 0.1 * values
        elif p.dim() == 1 or name.endswith("_bias"):
            values = 0.2 * values
        else:
            values = 0.15 * values
        p.data = values.to(p.dtype)


E2M1 = numpy.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def mxfp4(weight):
    """Quantises [expert, in, out] to blocks u8 [expert, out, in / 32, 16] and scales u8 [expert, out, in / 32], OCP MX v1.0.

    Two codes a byte, the first of a pair in the low nibble.
    """
    rows = weight.double().transpose(1, 2).numpy()
    groups = rows.reshape(*rows.shape[:2], -1, 32)
    largest = numpy.abs(groups).max(-1)
    exponent = numpy.floor(numpy.log2(largest)) - 2
    scaled = groups / numpy.exp2(exponent)[..., None]
    code = numpy.abs(numpy.abs(scaled)[..., None] - E2M1).argmin(-1) | ((scaled < 0) << 3)
    blocks = (code[..., 0::2] | (code[..., 1::2] << 4)).astype(numpy.uint8)
    scales = (exponent + 127).astype(numpy.uint8)
    # Undone here from the definition, and once more by transformers.
    values = numpy.where(code & 8, -1.0, 1.0) * E2M1[code & 7] * numpy.exp2(scales.astype(float) - 127)[..., None]
    values = torch.from_numpy(values.reshape(rows.shape)).transpose(1, 2).contiguous()
    blocks, scales = torch.from_numpy(blocks).contiguous(), torch.from_numpy(scales).contiguous()
    assert torch.equal(values, convert_moe_packed_tensors(blocks, scales, dtype=torch.float64))
    return blocks, scales, values


def quantise_experts(model, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    parameters = dict(model.named_parameters())
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj")) and ".experts." in n]:
        blocks, scales, values = mxfp4(tensors.pop(name))
        tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
        parameters[name].data = values.to(parameters[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder, older_rope, quantised):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if older_rope:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope
        config["torch_dtype"] = config.pop("dtype")
    if quantised:
        config["quantization_config"] = {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        }
    path.write_text(json.dumps(config, indent=2) + "\n")


def is_router(name):
    return name.endswith(("mlp.router", "mlp.gate", "block_sparse_moe.gate"))


def routing_hook(found, config):
    """Notes the gap between the last expert chosen and the first left out, in logits."""

    def hook(module, inputs, output):
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        logits = torch.nn.functional.linear(hidden, module.weight, getattr(module, "bias", None))
        top = logits.topk(config.num_experts_per_tok + 1, dim=-1).values
        found.append((top[:, -2] - top[:, -1]).min().item())

    return hook


def build(name, seed, config, dtype, older_rope, shard_size, mxfp4, as_published):
    """Writes one folder; returns the smallest margins of its greedy steps and of its routers' choices."""
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    config.dtype = dtype
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    model.set_experts_implementation("eager")
    randomise(model, seed)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size=shard_size, save_original_format=as_published)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = model.double().eval()
    if mxfp4:
        quantise_experts(model, folder)
    edit_config(folder, older_rope, mxfp4)

    ids = torch.randint(3, VOCAB, (2, 24), generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        routed = []
        hooks = [m.register_forward_hook(routing_hook(routed, config)) for n, m in model.named_modules() if is_router(n)]
        logits = model(ids, use_cache=False).logits
        for hook in hooks:
            hook.remove()
        routing = min(routed, default=float("inf"))
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        greedy, margin = ids[0, :8], float("inf")
        for _ in range(24):
            top = model(greedy[None], use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, (top.values[0] - top.values[1]).item())
            greedy = torch.cat([greedy, top.indices[:1]])
    save_file(
        {
            "input_ids": ids.to(torch.int32),
            "logits": logits.float().contiguous(),
            "greedy_ids": greedy.to(torch.int32),
        },
        folder / "expected.safetensors",
    )
    expected = {
        "loss": loss.item(),
        "min_top2_margin": margin,
        "min_routing_margin": routing if routed else None,
        "made_with": {
            "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0],
            "compute_dtype": "float64",
        },
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return margin, routing


def main():
    transformers.utils.logging.disable_progress_bar()
    all_specs = specs()
    for name in sys.argv[1:] or all_specs:
        # The first seed whose greedy choices and routings are clear.
        for seed in range(1000):
            margin, routing = build(name, seed, **all_specs[name])
            if margin > 0.05 and routing > 0.01:
                break
        for file in (ROOT / name).iterdir():
            file.chmod(0o644)
        size = sum(f.stat().st_size for f in (ROOT / name).iterdir())
        print(f"{name}: seed {seed}, margins {margin:.3f} and {routing:.4f}, {size} bytes")


if __name__ == "__main__":
    main()
