//! Top-K/top-P selection.
