"""What every page is made of: fragments, text, figures, grids, export to HTML."""
