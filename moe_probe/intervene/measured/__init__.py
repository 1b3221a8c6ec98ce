"""Effects of interventions on a model's output, measured against the unedited run."""
