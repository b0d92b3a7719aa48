-- beside the daemon's own, which the image makes
CREATE DATABASE labelstudio;
