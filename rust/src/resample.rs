//! Repeat factors: how often an image is seen in an epoch.
