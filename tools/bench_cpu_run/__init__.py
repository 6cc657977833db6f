"""What `tools/bench_cpu --figures` measures."""
