"""What runs jobs: claim, execute, finish or reschedule."""
