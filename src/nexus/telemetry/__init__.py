"""What happened: records of runs and model calls, metrics from them, and agents' traces on their way to a collector."""
