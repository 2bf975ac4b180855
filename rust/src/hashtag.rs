//! Hashtags as people write them, brought into one form.
