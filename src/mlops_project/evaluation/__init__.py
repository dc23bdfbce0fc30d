"""From predictions to belief."""
