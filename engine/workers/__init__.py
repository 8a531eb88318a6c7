"""Child processes that share a long job: each works on one task at a time, and appends its rows to a file of its own."""
