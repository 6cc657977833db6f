"""The parts of `tools/hostile_batch`: batch jobs that are killed, torn and let down by the operating system."""
