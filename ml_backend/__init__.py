"""Images to masks and features: segmenters, detection over a pool, and the ML backend that Label Studio calls."""
