"""What the full runs share: data, augmentation, models, training, evaluation, report."""
