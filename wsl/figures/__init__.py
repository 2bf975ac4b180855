"""Charts, plots and the HTML page that holds them; it knows no other part of the package."""
