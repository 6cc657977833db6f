"""flexref as a model of EleutherAI's lm-evaluation-harness; `flexref.harness.model` needs `flexref[lm-eval]`."""
