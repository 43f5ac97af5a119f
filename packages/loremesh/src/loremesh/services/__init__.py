"""Long-lived tasks, one owner for each piece of state."""
