"""What a machine is, as data: capacities, curves, durations, prices."""
