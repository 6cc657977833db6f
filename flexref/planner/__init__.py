"""From a model, a machine and a job to the placement with the highest predicted throughput; pure: data in, data out."""
