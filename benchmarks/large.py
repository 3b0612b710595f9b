"""Pruning a model that is larger than the memory it may use.

    python -m benchmarks.large [--gigabytes 3] [--folder DIR]

Writes a network of matrix products with random weights as external data, prunes half of its units
in a process of its own, and prints the peak of that process's resident memory, mapped files
included, beside the bound 1.5 times the largest tensor plus 1 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH, HIDDEN = 4096, 16384  # 256 MiB per matrix


def write_model(path: Path, gigabytes: float) -> tuple[int, int]:
    """A residual multilayer perceptron; returns the bytes of all weights and of the largest."""
    blocks = max(1, round(gigabytes * 1e9 / (2 * WIDTH * HIDDEN * 4)))
    nodes, tensors, at = [], [], 0
    rng = np.random.default_rng(0)
    value = "x"
    with path.with_suffix(".bin").open("wb") as data:
        for block in range(blocks):
            for name, shape in ((f"up{block}", (WIDTH, HIDDEN)), (f"down{block}", (HIDDEN, WIDTH))):
                array = rng.standard_normal(shape, np.float32)
                array *= shape[0] ** -0.5
                data.write(array.data)
                entry = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
                entry.data_location = TensorProto.EXTERNAL
                place = {"location": data.name, "offset": at, "length": array.nbytes}
                place["location"] = Path(data.name).name
                for key, item in place.items():
                    entry.external_data.add(key=key, value=str(item))
                tensors.append(entry)
                at += array.nbytes
            nodes += [
                helper.make_node("MatMul", [value, f"up{block}"], [f"h{block}"]),
                helper.make_node("Relu", [f"h{block}"], [f"a{block}"]),
                helper.make_node("MatMul", [f"a{block}", f"down{block}"], [f"m{block}"]),
                helper.make_node("Add", [value, f"m{block}"], [f"x{block}"]),
            ]
            value = f"x{block}"
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", WIDTH])],
        tensors,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return at, WIDTH * HIDDEN * 4


def prune(source: str, target: str) -> None:
    """What the measured process does; prints its figures as JSON."""
    import secateur

    begin = time.perf_counter()
    result = secateur.prune(source, ratio=0.5, bench=False)
    result.save(target)
    assert result.certificate is not None
    figures = {
        "seconds": time.perf_counter() - begin,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "certificate": result.certificate.describe(),
        "written": sum(p.stat().st_size for p in Path(target).parent.iterdir()),
    }
    print(json.dumps(figures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="where the files go (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, target = Path(folder) / "large.onnx", Path(folder) / "out" / "pruned.onnx"
        target.parent.mkdir()
        total, largest = write_model(source, options.gigabytes)
        code = "import sys; from benchmarks.large import prune; prune(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), str(target)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        figures = json.loads(done.stdout.splitlines()[-1])
    bound = 1.5 * largest + 1e9
    print(f"weights      {total / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB")
    print(f"written      {figures['written'] / 1e9:.2f} GB in {figures['seconds']:.0f} s")
    print(f"certificate  {figures['certificate']}")
    print(f"peak memory  {figures['peak'] / 1e9:.2f} GB; bound {bound / 1e9:.2f} GB")
    return 0 if figures["peak"] <= bound else 1


if __name__ == "__main__":
    sys.exit(main())
