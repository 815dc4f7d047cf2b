"""The command line, one file a command. It prints here and nowhere else."""
