"""IoU-head transfer: a head learns to judge masks that are not the model's own; ``transfer`` runs it."""
