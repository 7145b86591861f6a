"""The decoder once more, in float64 NumPy with loops over positions: no code shared with the one that is tested."""

import math

import numpy as np


def forward(section, params, inputs, positions=None, segment_ids=None):
    """Logits `[batch, seq, vocab]`; params by unrolled names."""
    params = _float64(params)
    return np.stack(
        [
            _row(
                section,
                params,
                row,
                np.arange(len(row)) if positions is None else positions[i],
                None if segment_ids is None else segment_ids[i],
            )
            for i, row in enumerate(np.asarray(inputs))
        ]
    )


def _float64(tree):
    return {k: _float64(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)


def _row(c, params, tokens, positions, segments):
    x = params["embedding"]["token"][tokens] * (math.sqrt(c.embed_dim) if c.embedding_scale else 1.0)
    if c.positions == "learned":
        x = x + params["embedding"]["position"][positions]
    for i in range(c.num_layers):
        layer = params["layers"][str(i)]
        y = x if c.norm_placement == "after" else _norm(c, layer["attention_norm"], x)
        y = _attention(c, i, layer["attention"], y, positions, segments)
        x = x + (y if c.norm_placement == "before" else _norm(c, layer["attention_out_norm"], y))
        y = x if c.norm_placement == "after" else _norm(c, layer["mlp_norm"], x)
        y = _mlp(c, layer["mlp"], y)
        x = x + (y if c.norm_placement == "before" else _norm(c, layer["mlp_out_norm"], y))
    x = _norm(c, params["final_norm"], x)
    return _capped(x @ (params["embedding"]["token"].T if c.tie_embeddings else params["output"]), c.logit_softcap)


def _capped(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def _scale(c, scale):
    return scale + 1.0 if c.norm_offset else scale


def _norm(c, p, x):
    if c.norm == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    return _root_mean_square(c, x) * _scale(c, p["scale"]) + p.get("bias", 0.0)


def _root_mean_square(c, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon)


def _attention(c, number, p, x, positions, segments):
    q, k, v = (np.einsum("td,dhw->thw", x, p[n]) + p.get(f"{n}_bias", 0.0) for n in ("query", "key", "value"))
    if c.qk_norm:
        q, k = _norm_of_heads(c, q, p["query_norm"]), _norm_of_heads(c, k, p["key_norm"])
    if c.positions == "rotary" and c.rope_layers[number % len(c.rope_layers)]:
        has_own = c.windows and c.windows[number % len(c.windows)] and c.rope_window_theta is not None
        q, k = _rotate(c, q, positions, has_own), _rotate(c, k, positions, has_own)
    group = q.shape[1] // k.shape[1]
    window = (c.windows[number % len(c.windows)] if c.windows else 0) or len(x)
    out = np.zeros_like(q)
    for t in range(len(x)):
        seen = [s for s in range(max(t + 1 - window, 0), t + 1) if segments is None or segments[s] == segments[t]]
        for h in range(q.shape[1]):
            scores = k[seen, h // group] @ q[t, h] * (c.attention_scale or q.shape[2] ** -0.5)
            scores = _capped(scores, c.attention_softcap)
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ v[seen, h // group] / weights.sum()
    return np.einsum("thw,hwd->td", out, p["output"]) + p.get("output_bias", 0.0)


def _norm_of_heads(c, x, scale):
    """x `[seq, heads, width]`; the scale is of one head, or of all."""
    if scale.ndim == 1:
        return _root_mean_square(c, x) * _scale(c, scale)
    joint = x.reshape(len(x), -1)
    return (_root_mean_square(c, joint) * _scale(c, scale).reshape(-1)).reshape(x.shape)


def _rotate(c, x, positions, has_own):
    half = int(x.shape[-1] * c.rope_fraction) // 2
    steps = -np.arange(half) / half
    frequencies, scale = (c.rope_window_theta**steps, 1.0) if has_own else _frequencies(c, c.rope_theta**steps)
    angles = np.asarray(positions)[:, None, None] * frequencies
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * scale * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], axis=-1)


def _frequencies(c, plain):
    """As transformers 5.24 computes them in `modeling_rope_utils.py`, number by number, and the scale."""
    if c.rope_scaling == "linear":
        return plain / c.rope_factor, 1.0
    if c.rope_scaling == "llama3":
        found = []
        for f in plain:
            wavelength = 2 * math.pi / f
            smooth = (c.rope_original_len / wavelength - c.rope_low_freq_factor) / (
                c.rope_high_freq_factor - c.rope_low_freq_factor
            )
            if wavelength > c.rope_original_len / c.rope_low_freq_factor:
                found.append(f / c.rope_factor)
            elif wavelength < c.rope_original_len / c.rope_high_freq_factor:
                found.append(f)
            else:
                found.append((1 - smooth) * f / c.rope_factor + smooth * f)
        return np.array(found), 1.0
    if c.rope_scaling == "yarn":
        dim = 2 * len(plain)

        def pair(turns):
            return dim * math.log(c.rope_original_len / (turns * 2 * math.pi)) / (2 * math.log(c.rope_theta))

        low, high = max(math.floor(pair(c.rope_beta_fast)), 0), min(math.ceil(pair(c.rope_beta_slow)), dim - 1)
        high = high + 0.001 if low == high else high
        kept = [1 - min(max((i - low) / (high - low), 0), 1) for i in range(len(plain))]
        scale = c.rope_attention_factor or 0.1 * math.log(c.rope_factor) + 1
        return np.array([f / c.rope_factor * (1 - e) + f * e for f, e in zip(plain, kept, strict=True)]), scale
    return plain, 1.0


def _mlp(c, p, x):
    up = x @ p["up"] + p.get("up_bias", 0.0)
    if c.activation == "swiglu":
        gate = x @ p["gate"] + p.get("gate_bias", 0.0)
        hidden = gate / (1 + np.exp(-gate)) * up
    elif c.activation == "geglu_tanh":
        gate = x @ p["gate"] + p.get("gate_bias", 0.0)
        hidden = gate * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    elif c.activation == "gelu":
        hidden = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
    else:
        hidden = up * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return hidden @ p["down"] + p.get("down_bias", 0.0)
