"""What interventions do to a model's output, measured against the unedited run."""
