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
    x = params["embedding"]["token"][tokens]
    if c.positions == "learned":
        x = x + params["embedding"]["position"][positions]
    for i in range(c.num_layers):
        layer = params["layers"][str(i)]
        x = x + _attention(c, i, layer["attention"], _norm(c, layer["attention_norm"], x), positions, segments)
        x = x + _mlp(c, layer["mlp"], _norm(c, layer["mlp_norm"], x))
    x = _norm(c, params["final_norm"], x)
    return x @ (params["embedding"]["token"].T if c.tie_embeddings else params["output"])


def _norm(c, p, x):
    if c.norm == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    return _root_mean_square(c, x) * p["scale"] + p.get("bias", 0.0)


def _root_mean_square(c, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon)


def _attention(c, number, p, x, positions, segments):
    q, k, v = (np.einsum("td,dhw->thw", x, p[n]) + p.get(f"{n}_bias", 0.0) for n in ("query", "key", "value"))
    if c.qk_norm:
        q, k = _root_mean_square(c, q) * p["query_norm"], _root_mean_square(c, k) * p["key_norm"]
    if c.positions == "rotary" and c.rope_layers[number % len(c.rope_layers)]:
        q, k = _rotate(c, q, positions), _rotate(c, k, positions)
    group = q.shape[1] // k.shape[1]
    window = (c.windows[number % len(c.windows)] if c.windows else 0) or len(x)
    out = np.zeros_like(q)
    for t in range(len(x)):
        seen = [s for s in range(max(t + 1 - window, 0), t + 1) if segments is None or segments[s] == segments[t]]
        for h in range(q.shape[1]):
            scores = k[seen, h // group] @ q[t, h] / math.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ v[seen, h // group] / weights.sum()
    return np.einsum("thw,hwd->td", out, p["output"]) + p.get("output_bias", 0.0)


def _rotate(c, x, positions):
    half = int(x.shape[-1] * c.rope_fraction) // 2
    frequencies, scale = _frequencies(c, c.rope_theta ** (-np.arange(half) / half))
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
    elif c.activation == "gelu":
        hidden = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
    else:
        hidden = up * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return hidden @ p["down"] + p.get("down_bias", 0.0)
