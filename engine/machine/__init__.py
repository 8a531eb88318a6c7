"""What is installed on this machine and in this environment, and what the run needs of it."""
