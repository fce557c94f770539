"""What several commands rest on: orders to the daemon, checks, and what a user may not do."""
