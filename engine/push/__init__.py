"""Pushing a run's adapter to the Hub: in one commit, private unless asked otherwise, and never half."""
