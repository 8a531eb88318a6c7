"""Child processes that share a long job: each works on one task at a time, and appends what it makes to a file of its own."""
