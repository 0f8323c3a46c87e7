"""Runs: nets through their epochs, in processes, into checkpoints and a run folder."""
