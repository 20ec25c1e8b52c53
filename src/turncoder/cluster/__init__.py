"""Any command as a SLURM job."""
