"""flexref as a model of EleutherAI's lm-evaluation-harness; `flexref.harness.model` needs the extra `lm-eval`."""
