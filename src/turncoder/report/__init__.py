"""Run folders to tables, plots, and one page."""
