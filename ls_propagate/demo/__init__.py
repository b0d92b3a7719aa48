"""The demo: an embedded Label Studio, generated scenes, a simulated annotator, a report."""
