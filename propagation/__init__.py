"""The method: mask tables, features, cluster trees, strategies and campaigns, over arrays alone."""
