"""Label Studio's side of the plugin."""
