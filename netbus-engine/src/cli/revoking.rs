//! Taking a channel away from who uses it: first what would be lost, then a person's word, then the act.

use std::path::Path;

use super::args::Revoke;
use super::failure::Failure;
use super::screen::Screen;
use super::text::printable;
use super::verbs;
use crate::control::api::{Answer, Call, ErrorKind};

/// Does `revoke`.
pub(super) async fn run(revoke: Revoke, socket: &Path, screen: &mut Screen) -> Result<(), Failure> {
    let Revoke { channel, peer, yes } = revoke;
    let call = |confirmed| Call::Revoke { channel: channel.clone(), peer: peer.clone(), confirmed };
    if !yes {
        let answer = verbs::ask(socket, &call(false), screen).await?;
        let Answer::WouldRevoke { holders, loss, .. } = &answer else { return Err(verbs::unexpected()) };
        // Nothing can be lost and nothing is left to do.
        if holders.is_empty() {
            return verbs::print(&answer, screen);
        }
        confirm(loss, screen)?;
    }
    let answer = verbs::ask(socket, &call(true), screen).await?;
    verbs::print(&answer, screen)
}

fn confirm(loss: &str, screen: &mut Screen) -> Result<(), Failure> {
    match screen.ask(&format!("{}\nRevoke it? [y/N]", printable(loss))) {
        Some(word) if is_yes(&word) => Ok(()),
        Some(_) => Err(Failure::new(ErrorKind::NeedsConfirmation, "Nothing was revoked")),
        None => Err(Failure::new(ErrorKind::NeedsConfirmation, format!("{loss} To do it all the same, say --yes"))),
    }
}

fn is_yes(word: &str) -> bool {
    ["y", "yes"].iter().any(|yes| word.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        assert!(["y", "Y", "yes", "YES"].into_iter().all(is_yes));
        assert!(!["", "n", "no", "yep", "y!"].into_iter().any(is_yes));
    }
}
