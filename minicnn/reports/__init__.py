"""The pages of runs and studies. Read report.py, above, first; then run.py and study.py here."""
