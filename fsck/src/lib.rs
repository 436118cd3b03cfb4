//! Independent reader.
