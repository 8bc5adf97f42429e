"""What each family of models makes of its sources: one file each."""
