"""What a step costs, measured; see benchmarks/README.md."""
