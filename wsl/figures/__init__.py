"""Charts, plots and the HTML page that has them; it knows no other part of the package."""
