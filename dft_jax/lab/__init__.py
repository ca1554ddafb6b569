"""The laboratory: a small base model and an endless source of problems, in minutes on two cores."""
