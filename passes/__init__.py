"""The pass framework (contracts, pipelines, instrumentation) and the passes, one file each."""
