//! Label noise, replaced as the 2018 study did it.
