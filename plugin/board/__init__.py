"""The progress board: a document of figures as a page."""
