"""Top-1 accuracy of ONNX classifiers on a file of labelled images.

    python evaluate.py digits_test.npz digits.onnx digits_pruned.onnx

The data file is an .npz with `image` (the model's only input, batch first) and `label`
(int [batch]). Needs numpy and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def load(data_path: str | Path) -> tuple[NDArray[np.float32], Labels]:
    """The images [batch, ...] and labels [batch] of an .npz file.

    Raises ValueError if an array is missing or the two lengths differ, OSError if the file
    cannot be read.
    """
    with np.load(data_path) as data:
        missing = {"image", "label"} - set(data.files)
        if missing:
            raise ValueError(f"{data_path}: no array named {' or '.join(sorted(missing))}")
        image, label = data["image"], data["label"]
    if label.shape != image.shape[:1] or not len(label):
        raise ValueError(f"{data_path}: image {image.shape} and label {label.shape} do not match")
    return image, label


def predict(model_path: str | Path, image: NDArray[np.float32]) -> Labels:
    """The class [batch] with the largest logit, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model_path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: image})[0]
    return np.asarray(np.argmax(logits, axis=1), dtype=np.int64)


def accuracy(model_path: str | Path, data_path: str | Path) -> float:
    """Share of the images in 0..1 that the model classifies as labelled."""
    image, label = load(data_path)
    return float((predict(model_path, image) == label).mean())


def evaluate(data_path: str | Path, model_paths: list[Path]) -> list[dict[str, Any]]:
    """Bytes, accuracy and agreement with the first model's classes (0..1), for every model."""
    image, label = load(data_path)
    rows: list[dict[str, Any]] = []
    first: Labels | None = None
    for path in model_paths:
        classes = predict(path, image)
        first = classes if first is None else first
        rows.append(
            {
                "model": str(path),
                "bytes": path.stat().st_size,
                "accuracy": float((classes == label).mean()),
                "agreement": float((classes == first).mean()),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Top-1 accuracy of ONNX classifiers.")
    parser.add_argument("data", type=Path, help=".npz file with the arrays image and label")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    try:
        rows = evaluate(arguments.data, arguments.models)
    except Exception as error:  # ONNX Runtime's errors have no common base class of their own
        print(f"evaluate.py: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len("model"), *(len(row["model"]) for row in rows))
    print(f"{'model':<{width}} {'bytes':>10} {'accuracy':>9} {'agreement':>10}")
    for row in rows:
        print(
            f"{row['model']:<{width}} {row['bytes']:>10,}"
            f" {row['accuracy']:>9.2%} {row['agreement']:>10.2%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
