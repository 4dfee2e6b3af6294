"""`python -m obs_engine` is the command `obs-engine`."""

from obs_engine.cli.main import main

main()
