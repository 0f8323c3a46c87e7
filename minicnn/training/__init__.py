"""Train nets and write their files: epochs, worker processes, checkpoints and the run folder.

Read ensemble.py first, then trainer.py, then workers.py.
"""
