//! Systems whose sleep is not held up.

use std::future::{Ready, ready};

use tokio::sync::watch;

use super::{News, Wishes};

/// Does nothing.
pub(super) fn run(_wishes: watch::Receiver<Wishes>, _tell: impl Fn(News)) -> Ready<()> {
    ready(())
}
