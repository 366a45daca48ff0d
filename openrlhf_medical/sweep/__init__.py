"""Many runs from one file: variants times seeds, each in a folder of its own, and one table at the end.

sweep.yaml ─► plan (pure: every run's configuration, checked) ─► runner ─► submitter: this machine, Ray or Slurm
                                                                    │
                                              folder (what is known of each run) ─► summary (CSV, JSON, a page)
"""
