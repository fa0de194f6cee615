"""Recipes of published runs, one TOML file a run or a family of runs (`api/_recipes.py`)."""
