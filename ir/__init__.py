"""The internal representation: onnx-ir's graph, and on top of it shapes, coupling rules, units and
groups, rewriting, verification and printing. Knows no ONNX Runtime."""
