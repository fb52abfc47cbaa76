"""One self-contained HTML file of a run: its curves, its evaluation, its predictions."""
