//! The vocabulary: which tag is which label.
