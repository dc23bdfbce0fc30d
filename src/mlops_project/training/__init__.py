"""From batches to a saved model, and back from any interruption."""
