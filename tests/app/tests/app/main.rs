//! The window, used as people use it, in front of real daemons.

#![allow(clippy::unwrap_used, clippy::panic_in_result_fn)]

mod package;
mod service;
mod story;
