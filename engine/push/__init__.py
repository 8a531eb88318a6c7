"""Push a run's adapter to the Hub: in one commit, and private unless asked otherwise."""
