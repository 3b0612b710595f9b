"""Everything that runs or costs a model: ONNX Runtime sessions, inputs, certificates, timings,
and the analytic cost model."""
