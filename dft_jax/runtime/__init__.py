"""What everything else stands on: errors, files, signals, processes, the system."""
