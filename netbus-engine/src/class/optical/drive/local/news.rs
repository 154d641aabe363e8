//! What a drive tells of its disc beside what it was asked for.

use netbus_proto::class::optical::command::CommandOutcome;
use netbus_proto::class::optical::sense::Sense;

const EVENT_STATUS: u8 = 0x4a;

/// The sense key of what a drive tells once (SPC-4, section 4.5.6).
const UNIT_ATTENTION: u8 = 0x06;

/// Additional sense codes of a drive that has another disc, and of one that has none.
const CHANGED: u8 = 0x28;
const NO_MEDIUM: u8 = 0x3a;

/// The class of events about discs, the event that says that somebody pushes the button of a locked tray, and the bit of the
/// status that says that there is a disc (MMC-6, GET EVENT STATUS NOTIFICATION).
const MEDIA: u8 = 4;
const REMOVAL_ASKED_FOR: u8 = 1;
const PRESENT: u8 = 0x02;

/// What the outcome of a command tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// There is no disc.
    Empty,
    /// There is another one, or the one before was taken out just now.
    Changed,
}

impl News {
    /// What the outcome of a command tells, if anything.
    pub(super) fn of(cdb: &[u8], outcome: &CommandOutcome) -> Option<Self> {
        if let Some(sense) = Sense::parse(&outcome.sense) {
            return match (sense.key, sense.code) {
                (UNIT_ATTENTION, CHANGED | NO_MEDIUM) => Some(Self::Changed),
                (_, NO_MEDIUM) => Some(Self::Empty),
                _ => None,
            };
        }
        let [_, _, class, _, event, status, ..] = outcome.data[..] else { return None };
        if cdb.first() != Some(&EVENT_STATUS) || class & 0x07 != MEDIA {
            return None;
        }
        match event & 0x0f {
            0 | REMOVAL_ASKED_FOR if status & PRESENT == 0 => Some(Self::Empty),
            0 | REMOVAL_ASKED_FOR => None,
            _ => Some(Self::Changed),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use netbus_proto::class::optical::sense::{CHECK_CONDITION, GOOD};

    use super::*;

    #[test]
    fn a_disc_is_told_of_by_senses_and_by_events() {
        let sense = |data: Bytes| News::of(&[0; 6], &outcome(CHECK_CONDITION, data, &[]));
        assert_eq!(sense(Sense::MEDIUM_CHANGED.data()), Some(News::Changed));
        assert_eq!(sense(Sense::BECOMING_READY.data()), None);
        let no_medium = |key| Bytes::copy_from_slice(&[0x72, key, 0x3a, 0, 0, 0, 0, 0]);
        assert_eq!(sense(no_medium(0x06)), Some(News::Changed));
        assert_eq!(sense(no_medium(0x02)), Some(News::Empty));
        for (event, status, news) in [
            (0, 2, None),
            // Somebody pushes the button; the subscriber is told by what it gets.
            (1, 2, None),
            (0, 0, Some(News::Empty)),
            (0, 1, Some(News::Empty)),
            (2, 2, Some(News::Changed)),
            (3, 1, Some(News::Changed)),
            (4, 2, Some(News::Changed)),
        ] {
            let told = [0, 6, 4, 0x5e, event, status, 0, 0];
            assert_eq!(News::of(&[EVENT_STATUS, 1], &outcome(GOOD, Bytes::new(), &told)), news, "{event} {status}");
            assert_eq!(News::of(&[0x28], &outcome(GOOD, Bytes::new(), &told)), None, "what is on a disc");
        }
        // Of another class, and shorter than an event.
        for told in [&[0, 6, 1, 0x5e, 2, 2, 0, 0][..], &[0, 2, 0x80, 0x5e]] {
            assert_eq!(News::of(&[EVENT_STATUS, 1], &outcome(GOOD, Bytes::new(), told)), None);
        }
    }

    fn outcome(status: u8, sense: Bytes, data: &[u8]) -> CommandOutcome {
        CommandOutcome { forgotten: false, status, sense, residual: 0, data: Bytes::copy_from_slice(data) }
    }
}
