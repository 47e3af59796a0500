"""How good a checkpoint is: benchmarks and probes on frozen features."""
