"""Which events the present needs: event keys, scorers, similarity and contiguity within a budget."""
