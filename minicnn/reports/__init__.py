"""Web pages about runs and studies.

Read the command ../report.py first, then run.py and study.py, which build the two kinds of pages.
"""
