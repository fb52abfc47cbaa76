"""What the facts mean for training: rules, findings, fixes."""
