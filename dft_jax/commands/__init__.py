"""What the commands share: flags, config files, and how their mistakes are said."""
