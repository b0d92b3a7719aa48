"""The annotation tool's side: its API, images, labeling configs, pages and regions."""
