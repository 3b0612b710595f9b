"""JAX models (flax.nnx, equinox, plain jax.numpy) by jax2onnx.

Needs jax, flax, equinox and jax2onnx (tried with jax 0.10, flax 0.12, equinox 0.13, jax2onnx
0.17): a Python of its own, environment ``jax``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .case import Case

Built = tuple[Callable[..., Any], tuple[Any, ...]]


def _mlp() -> Built:
    import jax
    from flax import nnx

    rngs = nnx.Rngs(0)
    up, norm = nnx.Linear(16, 64, rngs=rngs), nnx.BatchNorm(64, rngs=rngs)
    middle, down = nnx.Linear(64, 32, rngs=rngs), nnx.Linear(32, 5, rngs=rngs)
    norm.eval()
    return lambda x: down(jax.nn.gelu(middle(jax.nn.relu(norm(up(x)))))), ("batch", 16)


def _cnn() -> Built:
    import jax
    from flax import nnx

    rngs = nnx.Rngs(0)
    first, second, third = (
        nnx.Conv(a, b, (3, 3), strides=s, rngs=rngs)
        for a, b, s in ((3, 32, 1), (32, 48, 2), (48, 48, 1))
    )
    norm, head = nnx.BatchNorm(48, rngs=rngs), nnx.Linear(48, 10, rngs=rngs)
    norm.eval()

    def run(x: Any) -> Any:
        x = jax.nn.relu(second(jax.nn.relu(first(x))))
        x = x + jax.nn.relu(norm(third(x)))
        x = nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        return head(x.mean((1, 2)))

    return run, ("batch", 16, 16, 3)


def _flat_cnn() -> Built:
    import jax
    from flax import nnx

    rngs = nnx.Rngs(0)
    first, depth = (
        nnx.Conv(1, 16, (3, 3), rngs=rngs),
        nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs),
    )
    hidden, head = nnx.Linear(16 * 7 * 7, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

    def run(x: Any) -> Any:
        x = nnx.max_pool(jax.nn.relu(first(x)), window_shape=(2, 2), strides=(2, 2))
        x = nnx.max_pool(jax.nn.silu(depth(x)), window_shape=(2, 2), strides=(2, 2))
        return head(jax.nn.relu(hidden(x.reshape(x.shape[0], -1))))

    return run, (2, 28, 28, 1)


def _transformer() -> Built:
    import jax
    from flax import nnx

    rngs = nnx.Rngs(0)
    blocks = [
        (
            nnx.LayerNorm(64, rngs=rngs),
            nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs),
            nnx.LayerNorm(64, rngs=rngs),
            nnx.Linear(64, 128, rngs=rngs),
            nnx.Linear(128, 64, rngs=rngs),
        )
        for _ in range(2)
    ]
    head = nnx.Linear(64, 5, rngs=rngs)

    def run(x: Any) -> Any:
        for first, attention, second, up, down in blocks:
            x = x + attention(first(x))
            x = x + down(jax.nn.gelu(up(second(x))))
        return head(x.mean(1))

    return run, ("batch", 12, 64)


def _grouped_query() -> Built:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 7)
    sizes = ((64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64))
    q, k, v, o, gate, up, down = (
        jax.random.normal(key, size) * size[0] ** -0.5
        for key, size in zip(keys, sizes, strict=True)
    )

    def run(x: Any) -> Any:
        heads = (x @ q).reshape(2, 12, 4, 16)
        key, value = ((x @ w).reshape(2, 12, 2, 16).repeat(2, axis=2) for w in (k, v))
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", heads, key) / 4.0)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", scores, value).reshape(2, 12, 64) @ o
        return x + (jax.nn.silu(x @ gate) * (x @ up)) @ down

    return run, (2, 12, 64)


def _equinox() -> Built:
    import equinox
    import jax

    mlp = equinox.nn.MLP(16, 5, 64, 3, key=jax.random.key(0))
    return jax.vmap(mlp), ("batch", 16)


def _scan() -> Built:
    """A gated recurrent network as jax.lax.scan: a Loop or Scan in the file."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 5)
    sizes = ((8, 32), (32, 32), (8, 32), (32, 32), (32, 5))
    wx, wh, gx, gh, out = (
        jax.random.normal(key, size) * size[0] ** -0.5
        for key, size in zip(keys, sizes, strict=True)
    )

    def step(h: Any, x: Any) -> tuple[Any, Any]:
        gate = jax.nn.sigmoid(x @ gx + h @ gh)
        h = gate * h + (1 - gate) * jnp.tanh(x @ wx + h @ wh)
        return h, h

    def run(x: Any) -> Any:
        last, _ = jax.lax.scan(step, jnp.zeros((2, 32)), x.transpose(1, 0, 2))
        return last @ out

    return run, (2, 6, 8)


MODELS: dict[str, Callable[[], Built]] = {
    "flax-mlp": _mlp,
    "flax-cnn": _cnn,
    "flax-flat-cnn": _flat_cnn,
    "flax-transformer": _transformer,
    "grouped-query": _grouped_query,
    "equinox-mlp": _equinox,
    "scan": _scan,
}


def _export(build: Callable[[], Built], path: Path) -> None:
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import onnx
    from jax2onnx import to_onnx

    function, shape = build()
    onnx.save(to_onnx(function, [shape], input_names=["x"], output_names=["y"], opset=21), path)


def cases() -> list[Case]:
    """``jax/…``, with a dynamic batch where it traces."""
    return [
        Case(f"jax/{name}", partial(_export, build), environment="jax")
        for name, build in MODELS.items()
    ]
