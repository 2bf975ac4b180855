//! The engine from outside, one module per part.
