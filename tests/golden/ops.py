"""Golden tensors for the op references, computed by PyTorch in float64.

    python tests/golden/ops.py

writes kernels/tests/golden/ops.json: a list of cases {op, params, inputs, outputs}, each tensor a flat list in storage order.
Needs torch and transformers (for the frequencies of rotary embeddings and the filters of sampling). Inputs are multiples of 1/64,
so that every element type from f16 up holds them exactly.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

torch.manual_seed(20240229)
CASES = []


def rand(*shape):
    return torch.randint(-160, 161, shape).double() / 64


def flat(value):
    """A list for JSON, which knows no infinities and no NaN."""
    if isinstance(value, torch.Tensor):
        value = value.detach().reshape(-1).tolist()
    return [v if math.isfinite(v) else str(v) for v in value]


def case(op, params, inputs, **outputs):
    CASES.append(
        {"op": op, "params": params, "inputs": {k: flat(v) for k, v in inputs.items()}, "outputs": {k: flat(v) for k, v in outputs.items()}}
    )


def stored(batch, rows, cols, transposed, gap):
    """A batch of matrices as a view of its storage: (storage, view, strides)."""
    inner = (rows if transposed else cols) + gap
    strides = (1, inner) if transposed else (inner, 1)
    size = inner * (cols if transposed else rows)
    storage = rand(batch * size)
    return storage, storage.as_strided((batch, rows, cols), (size, *strides)), [*strides, size]


def matmul():
    def one(batch=1, m=3, n=5, k=4, ta=False, tb=False, gap=0, scale=1.0, bias=False, activation="none", residual=False, sa=None, sb=None):
        a_data, a, a_strides = stored(batch, m, k, ta, gap)
        b_data, b, b_strides = stored(batch, k, n, tb, gap)
        params = dict(batch=batch, m=m, n=n, k=k, a=a_strides, b=b_strides, scale=scale, bias=bias, activation=activation, residual=residual, a_scale=sa, b_scale=sb)
        inputs = {"a": a_data, "b": b_data}

        def scaled(x, granularity, name, vectors):
            # x: [batch, vectors, k]
            if granularity is None:
                return x
            group = {"tensor": None, "vector": None}.get(granularity, granularity)
            if granularity == "tensor":
                s = rand(batch)
                factor = s[:, None, None]
            elif granularity == "vector":
                s = rand(batch, vectors)
                factor = s[:, :, None]
            else:
                s = rand(batch, vectors, -(-k // group))
                factor = s.repeat_interleave(group, dim=2)[:, :, :k]
            inputs[name] = s
            return x * factor

        a = scaled(a, sa, "a_scale", m)
        b = scaled(b.mT, sb, "b_scale", n).mT
        c = (a @ b) * scale
        if bias:
            inputs["bias"] = rand(n)
            c = c + inputs["bias"]
        c = {"none": lambda x: x, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}[activation](c)
        if residual:
            inputs["residual"] = rand(batch, m, n)
            c = c + inputs["residual"]
        case("matmul", params, inputs, c=c)

    for ta in (False, True):
        for tb in (False, True):
            one(ta=ta, tb=tb)
            one(ta=ta, tb=tb, batch=2, gap=3)
    one(k=0, bias=True, residual=True)
    one(m=1, n=1, k=17)
    one(scale=0.25, bias=True)
    for activation in ("silu", "gelu", "gelu_tanh"):
        one(activation=activation, bias=True, residual=True, scale=0.5, m=4)
    for s in ("tensor", "vector", 3):
        one(batch=2, k=8, sa=s, sb=s)
    one(k=8, sa="vector", sb=4, bias=True)


def grouped():
    for (tokens, experts, top_k, divisor, bias, activation) in ((6, 4, 2, 2, False, "none"), (5, 3, 1, 1, True, "silu")):
        n, k = 4, 3
        rows = tokens * top_k
        chosen = torch.randint(0, experts - 1, (rows,))  # the last expert idles
        order = torch.argsort(chosen, stable=True)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(chosen, minlength=experts).cumsum(0)])
        a, b, bb = rand(rows // divisor, k), rand(experts, n, k), rand(experts, n)
        c = torch.zeros(rows, n, dtype=torch.float64)
        for row in range(rows):
            e = chosen[row]
            value = b[e] @ a[row // divisor]
            if bias:
                value = value + bb[e]
            c[row] = F.silu(value) if activation == "silu" else value
        inputs = {"a": a, "b": b, "offsets": offsets, "order": order} | ({"bias": bb} if bias else {})
        params = dict(experts=experts, rows=rows, n=n, k=k, a_rows=rows // divisor, a_divisor=divisor, bias=bias, activation=activation)
        case("grouped_matmul", params, inputs, c=c)


def attend(q, k, v, causal, window, scale, soft_cap, sinks):
    """One sequence: q [h, n, d], k and v [hkv, length, d]."""
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    n, length = q.shape[1], k.shape[1]
    scores = q @ k.mT * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    position = length - n + torch.arange(n)[:, None]
    key = torch.arange(length)[None, :]
    hidden = torch.zeros(n, length, dtype=torch.bool)
    if causal:
        hidden |= key > position
    if window:
        hidden |= key <= position - window
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks is not None:
        column = sinks[:, None, None].expand(-1, n, 1)
        weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1).nan_to_num(0.0)
    return weights @ v


def attention():
    def one(q_lens, kv_lens, heads=2, kv_heads=1, d=4, causal=True, window=None, soft_cap=None, sinks=False, ragged=False, library=False):
        batch, capacity = len(kv_lens), max(kv_lens) + 2
        tokens = sum(q_lens)
        q, k, v = rand(tokens, heads, d), rand(batch, kv_heads, capacity, d), rand(batch, kv_heads, capacity, d)
        sink = rand(heads) if sinks else None
        scale = 1 / math.sqrt(d)
        out, first, offsets = torch.zeros_like(q), 0, [0]
        for b, (n, length) in enumerate(zip(q_lens, kv_lens)):
            args = q[first : first + n].transpose(0, 1), k[b, :, :length], v[b, :, :length]
            result = attend(*args, causal, window, scale, soft_cap, sink)
            if library:
                # PyTorch aligns causal masks top left: the same where n == length
                assert n == length or not causal
                theirs = F.scaled_dot_product_attention(*(x[None] for x in args), is_causal=causal, enable_gqa=True)[0]
                torch.testing.assert_close(result, theirs)
                result = theirs
            out[first : first + n] = result.transpose(0, 1)
            first += n
            offsets.append(first)
        inputs = {"q": q, "k": k, "v": v, "kv_len": kv_lens}
        if ragged:
            inputs["q_offsets"] = offsets
        if sinks:
            inputs["sinks"] = sink
        params = dict(batch=batch, q_len=max(q_lens), ragged=ragged, tokens=tokens, heads=heads, kv_heads=kv_heads, d=d, capacity=capacity, causal=causal, window=window, soft_cap=soft_cap, sinks=sinks)
        case("attention", params, inputs, out=out)

    one([5], [5], library=True)
    one([4, 4], [4, 4], heads=4, kv_heads=2, library=True)
    one([3], [6], causal=False, kv_heads=2, library=True)
    one([3], [7])  # bottom right: more keys than queries
    one([5], [3])  # the first two rows see nothing
    one([1, 1, 1], [4, 1, 6], heads=3)
    one([6], [6], window=1)
    one([5], [8], window=3)
    one([4], [6], causal=False, window=2)
    one([4], [4], soft_cap=1.5)
    one([3], [5], sinks=True, heads=4, kv_heads=2)
    one([5], [3], sinks=True)
    one([2, 4, 1], [5, 4, 3], ragged=True, heads=4, kv_heads=2)
    one([3, 0, 2], [3, 4, 6], ragged=True, window=2, soft_cap=3.0, sinks=True)
    one([2], [0])  # an empty cache


def norms():
    for residual in (False, True):
        for offset, eps in ((0.0, 2.0**-20), (1.0, 2.0**-7)):
            x, r, w, b = rand(3, 6), rand(3, 6), rand(6), rand(6)
            total = x + r if residual else x
            inputs = {"x": x} | ({"residual": r} if residual else {}) | {"weight": w}
            params = dict(rows=3, len=6, eps=eps, residual=residual)
            case("rms_norm", params | dict(offset=offset), inputs, sum=total, out=F.rms_norm(total, (6,), w + offset, eps))
            bias = offset == 1.0
            out = F.layer_norm(total, (6,), w, b if bias else None, eps)
            case("layer_norm", params | dict(bias=bias), inputs | ({"bias": b} if bias else {}), sum=total, out=out)


def rope():
    def one(name, dim=16, theta=10000.0, partial=1.0, interleaved=False, **scaling):
        config = LlamaConfig(
            hidden_size=2 * dim,
            num_attention_heads=2,
            head_dim=dim,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": name, "rope_theta": theta, "partial_rotary_factor": partial, **scaling},
        )
        rotary = int(dim * partial)
        if name == "default":
            frequencies, factor = 1.0 / theta ** (torch.arange(0, rotary, 2).double() / rotary), 1.0
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[name](config, "cpu")
        positions = torch.tensor([0, 1, 7, 50])
        x = rand(4, 2, dim)
        angle = positions[:, None].double() * frequencies.double()[None, :]
        turned, kept = x[..., :rotary], x[..., rotary:]
        if interleaved:
            pairs = torch.view_as_complex(turned.reshape(4, 2, rotary // 2, 2).contiguous())
            rotation = torch.polar(torch.ones_like(angle), angle)[:, None, :] * factor
            turned = torch.view_as_real(pairs * rotation).reshape(4, 2, rotary)
        else:
            both = torch.cat([angle, angle], dim=-1)
            cos, sin = both.cos() * factor, both.sin() * factor
            turned, _ = apply_rotary_pos_emb(turned, turned, cos, sin, unsqueeze_dim=1)
        out = torch.cat([turned, kept], dim=-1)
        params = dict(scaling=name, dim=dim, rotary=rotary, theta=theta, interleaved=interleaved, tokens=4, heads=2, **scaling | dict(attention_factor=factor))
        case("rope", params, {"positions": positions, "x": x}, frequencies=frequencies.double(), x=out)

    for interleaved in (False, True):
        one("default", interleaved=interleaved)
        one("default", partial=0.5, interleaved=interleaved)
    one("linear", factor=4.0)
    one("llama3", dim=64, theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    one("llama3", dim=32, theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024)
    yarn = dict(factor=32.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=4096)
    one("yarn", dim=64, theta=150000.0, truncate=False, **yarn)
    one("yarn", dim=64, theta=150000.0, truncate=True, interleaved=True, **yarn)
    one("yarn", dim=32, theta=1000000.0, **yarn | dict(factor=4.0, attention_factor=1.25))


def gated():
    gate, up = rand(2, 9) * 4, rand(2, 9) * 4
    case("gated", dict(kind="swiglu", rows=2, len=9), {"gate": gate, "up": up}, out=F.silu(gate) * up)
    case("gated", dict(kind="geglu", rows=2, len=9), {"gate": gate, "up": up}, out=F.gelu(gate) * up)
    case("gated", dict(kind="geglu_tanh", rows=2, len=9), {"gate": gate, "up": up}, out=F.gelu(gate, approximate="tanh") * up)
    alpha, limit = 1.703125, 7.0
    g, u = gate.clamp(max=limit), up.clamp(-limit, limit)
    params = dict(kind="gpt_oss", rows=2, len=9, alpha=alpha, limit=limit)
    case("gated", params, {"gate": gate, "up": up}, out=(u + 1) * (g * torch.sigmoid(g * alpha)))


def softmax():
    x = rand(4, 7)
    x[1] *= 300  # exponentials of the unshifted values overflow f32
    x[2, 3] = -math.inf
    case("softmax", dict(rows=4, len=7, scale=1.0), {"x": x}, out=x.softmax(-1))
    y = rand(3, 7)
    case("softmax", dict(rows=3, len=7, scale=-0.5), {"x": y}, out=(y * -0.5).softmax(-1))
    z = rand(2, 5)
    z[1, 2] = math.nan
    case("softmax", dict(rows=2, len=5, scale=1.0), {"x": z}, out=z.softmax(-1))


def embed():
    table, ids = rand(6, 5), torch.tensor([3, 0, 5, 3])
    case("embed", dict(tokens=4, vocab=6, dim=5, scale=2.25), {"ids": ids, "table": table}, out=F.embedding(ids, table) * 2.25)


def route():
    for order, renormalise in (("softmax_first", False), ("softmax_first", True), ("topk_first", None)):
        tokens, experts, top_k = 7, 6, 3
        logits = rand(tokens, experts)
        while any(row.unique().numel() < experts for row in logits):  # torch.topk leaves ties open
            logits = rand(tokens, experts)
        if order == "softmax_first":
            weights, chosen = torch.topk(logits.softmax(-1), top_k)
            if renormalise:
                weights = weights / weights.sum(-1, keepdim=True)
        else:
            values, chosen = torch.topk(logits, top_k)
            weights = values.softmax(-1)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(chosen.flatten(), minlength=experts).cumsum(0)])
        positions = torch.argsort(chosen.flatten(), stable=True)
        params = dict(tokens=tokens, experts=experts, top_k=top_k, order=order, renormalise=renormalise)
        case("route", params, {"logits": logits}, weights=weights, experts=chosen, offsets=offsets, order=positions)
    x, w, r = rand(4, 2, 5), rand(4, 2), rand(4, 5)
    params = dict(tokens=4, top_k=2, len=5)
    case("combine", params | dict(residual=False), {"x": x, "weights": w}, out=torch.einsum("tjd,tj->td", x, w))
    case("combine", params | dict(residual=True), {"x": x, "weights": w, "residual": r}, out=r + torch.einsum("tjd,tj->td", x, w))


def sample():
    for temperature, top_k, top_p in ((1.0, None, None), (0.75, 4, None), (1.5, None, 0.75), (0.5, 6, 0.875), (1.0, 1, 0.5), (2.0, 100, 1.0)):
        logits = rand(1, 12)
        while logits.unique().numel() < 12:
            logits = rand(1, 12)
        filtered = logits / temperature
        if top_k:
            filtered = TopKLogitsWarper(top_k)(None, filtered)
        if top_p:
            filtered = TopPLogitsWarper(top_p)(None, filtered)
        params = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        case("sample", params, {"x": logits}, probabilities=filtered.softmax(-1))


for group in (matmul, grouped, attention, norms, rope, gated, softmax, embed, route, sample):
    group()
path = pathlib.Path(__file__).parents[2] / "kernels/tests/golden/ops.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES) + "\n]\n")
print(f"{len(CASES)} cases, {path.stat().st_size} bytes: {path}")
