"""Train nets and write their files: epochs, worker processes, checkpoints and the run folder.

Read ensemble.py first, then trainer.py, then workers.py. crews.py says who trains: processes of
this machine, or the workers of a Dask cluster, for which remote.py and cluster.py come next.
"""
