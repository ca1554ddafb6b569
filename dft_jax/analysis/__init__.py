"""What reads finished runs: tables and pictures. Nothing in the core imports it."""
