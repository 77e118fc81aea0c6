"""The running process: errors, logs, signals, GPU leases, locks. Nothing that computes."""
