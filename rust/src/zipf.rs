//! Statistics of a Zipf-like distribution.
