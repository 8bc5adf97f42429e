"""Files of weights, as their frameworks write them: one reader each."""
