"""Benchmarks: what the parts can do on this machine, with the method of each."""
