"""The accelerations of `mlx_dpo.training.paths`, each an exact rewriting of the plain path."""
