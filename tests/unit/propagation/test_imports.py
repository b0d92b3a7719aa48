"""What the method loads: a daemon that only reads, asks and writes needs no library for learning or clustering."""

import subprocess
import sys

HEAVY = {
    "sklearn",
    "pandas",
    "pyarrow",
    "faiss",
    "fastcluster",
    "scipy.stats",
    "scipy.cluster",
    "matplotlib",
    "nltk",
}
PROGRAM = """
import sys
import propagation.campaign, propagation.summary, propagation.calibrated, propagation.paper
import propagation.tree, propagation.masks, plugin.label_studio.regions
print(*sys.modules)
"""


def test_libraries_for_learning_and_clustering_are_loaded_when_they_are_used():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())
