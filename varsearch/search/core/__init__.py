"""What everything in the search speaks of: settings, objectives, dominance."""
