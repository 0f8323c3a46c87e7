"""Train nets and write their files: epochs, worker processes, checkpoints and the run folder.

Read trainer.py first, then ensemble.py and workers.py.
"""
