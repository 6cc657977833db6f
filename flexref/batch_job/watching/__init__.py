"""Those who watch a batch job, each in a file of its own: a log, metrics, warnings, a bound on writes."""
