"""`python -m mlx_dpo`."""

from mlx_dpo.cli import main

main()
