//! Which commands are passed on to a drive (protocol.md, "Commands that are passed on"). Whatever is not in the table is
//! refused: what writes firmware, what a maker has made up, and what nobody here has looked at.
//!
//! The operations are those of MMC-6, SPC-4 and SBC-3. What a command asks to be moved is computed of its fields and held
//! against the length that comes with it: a drive never waits for bytes that nobody sends.

use std::ops::Range;

use super::SECTOR;
use super::command::{Direction, MAX_DATA};
use super::sense::Sense;

/// A command that may be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Bytes of it that mean something; programs send some with zeroes behind it.
    pub cdb_len: usize,
    /// Whether it changes the disc.
    pub changes: bool,
    /// How long it may take.
    pub patience: Patience,
}

/// How long a command may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Answered from memory, or as soon as the drive has looked at its disc.
    Usual,
    /// Moves the tray or the laser, or what a slow disc holds.
    Slow,
    /// Works through a whole disc.
    Long,
}

/// Why a command is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is not in the table.
    Unknown,
    /// One of its fields has a value that is not passed on, or does not fit the data.
    Field,
    /// It changes the disc of a drive that is published for reading only.
    Protected,
}

impl Refused {
    /// As a drive would say it.
    #[must_use]
    pub fn sense(self) -> Sense {
        match self {
            Self::Unknown => Sense::UNKNOWN_COMMAND,
            Self::Field => Sense::INVALID_FIELD,
            Self::Protected => Sense::WRITE_PROTECTED,
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub struct Rule {
    /// The operation code.
    pub code: u8,
    /// What the standard calls it.
    pub name: &'static str,
    /// Whether it is only for drives that are not published for reading only.
    pub changes: bool,
    /// How long it may take.
    pub patience: Patience,
    moves: Moves,
    fits: fn(&[u8]) -> bool,
}

/// What a command asks to be moved.
#[derive(Debug)]
enum Moves {
    Nothing,
    /// At most as many bytes as a field of the command says.
    In(Range<usize>),
    /// So many bytes.
    InFixed(u32),
    /// As many sectors as a field says.
    InSectors(Range<usize>),
    /// As many sectors of a CD, of parts that the command names.
    InParts(Range<usize>),
    /// Depends on the drive.
    InAny,
    /// As many bytes as a field says.
    Out(Range<usize>),
    /// As many sectors as a field says, of a size that was set before.
    OutSectors(Range<usize>),
    /// A list of parameters whose length stands in itself, if there is one.
    OutFormat,
}

/// The sizes that a sector to be written may have, in bytes: from data alone to a whole one with its subchannel.
const WRITTEN: Range<u32> = 2048..2449;

/// The longest list for FORMAT UNIT, in bytes.
const FORMAT_LIST: Range<u32> = 4..65;

/// Judges a command descriptor block and the length that comes with it.
///
/// # Errors
/// [`Refused`].
pub fn judge(cdb: &[u8], direction: Direction, length: u32, read_only: bool) -> Result<Judged, Refused> {
    let code = *cdb.first().ok_or(Refused::Unknown)?;
    let rule = RULES.iter().find(|rule| rule.code == code).ok_or(Refused::Unknown)?;
    if rule.changes && read_only {
        return Err(Refused::Protected);
    }
    let cdb_len = group_len(code);
    // The last byte belongs to the maker of the drive, or to ways of linking commands that nobody uses.
    let is_whole = cdb.len() >= cdb_len
        && cdb[cdb_len..].iter().all(|byte| *byte == 0)
        && (cdb[cdb_len - 1] == 0 || code == READ_TOC && cdb[cdb_len - 1] & !OLD_FORMAT == 0);
    if !is_whole || length > MAX_DATA || !(rule.fits)(cdb) || !rule.moves.allow(cdb, direction, length) {
        return Err(Refused::Field);
    }
    Ok(Judged { cdb_len, changes: rule.changes, patience: rule.patience })
}

/// How long a command of this code is (SPC-4, section 4.2.5.1).
fn group_len(code: u8) -> usize {
    match code >> 5 {
        0 => 6,
        1 | 2 => 10,
        4 => 16,
        _ => 12,
    }
}

impl Moves {
    fn allow(&self, cdb: &[u8], direction: Direction, length: u32) -> bool {
        let comes = |asked: u64| asked == 0 || direction == Direction::In && asked <= u64::from(length);
        match self {
            Self::Nothing => direction == Direction::None,
            Self::In(field) => direction != Direction::Out && comes(number(cdb, field)),
            Self::InFixed(asked) => comes(u64::from(*asked)),
            Self::InSectors(field) => direction != Direction::Out && comes(number(cdb, field) * u64::from(SECTOR)),
            Self::InParts(field) => direction != Direction::Out && comes(sectors(cdb, field) * part_len(cdb)),
            Self::InAny => direction == Direction::In,
            Self::Out(field) => match number(cdb, field) {
                0 => direction == Direction::None,
                asked => direction == Direction::Out && asked == u64::from(length),
            },
            Self::OutSectors(field) => match (number(cdb, field), direction) {
                (0, Direction::None) => true,
                (count, Direction::Out) => u32::try_from(count).is_ok_and(|count| {
                    count > 0 && length.is_multiple_of(count) && WRITTEN.contains(&(length / count))
                }),
                (_, Direction::None | Direction::In) => false,
            },
            // FMTDATA says that there is a list.
            Self::OutFormat => match direction {
                Direction::None => cdb[1] & 0x10 == 0,
                Direction::Out => cdb[1] & 0x10 != 0 && FORMAT_LIST.contains(&length),
                Direction::In => false,
            },
        }
    }
}

/// The number in a field.
fn number(cdb: &[u8], field: &Range<usize>) -> u64 {
    cdb[field.clone()].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// How many sectors READ CD (a count) or READ CD MSF (start and end, in minutes, seconds and frames) names.
fn sectors(cdb: &[u8], field: &Range<usize>) -> u64 {
    if cdb[0] != READ_CD_MSF {
        return number(cdb, field);
    }
    let frames = |at: usize| (u64::from(cdb[at]) * 60 + u64::from(cdb[at + 1])) * 75 + u64::from(cdb[at + 2]);
    frames(6).saturating_sub(frames(3))
}

/// How many bytes of each sector come at least: what headers there are depends on the disc.
fn part_len(cdb: &[u8]) -> u64 {
    let user = if cdb[9] & 0x10 == 0 { 0 } else { u64::from(SECTOR) };
    let errors = match cdb[9] >> 1 & 0x03 {
        1 => 294,
        2 => 296,
        _ => 0,
    };
    let subchannel = match cdb[10] & 0x07 {
        1 | 4 => 96,
        2 => 16,
        _ => 0,
    };
    user + errors + subchannel
}

const READ_CD_MSF: u8 = 0xb9;
const READ_TOC: u8 = 0x43;

/// Where the format of READ TOC stood before MMC, and where Linux still writes it.
const OLD_FORMAT: u8 = 0xc0;

fn any(_: &[u8]) -> bool {
    true
}

/// No power condition, which could put the drive to sleep, and no other layer.
fn moves_the_tray(cdb: &[u8]) -> bool {
    cdb[4] & 0xfc == 0
}

/// BYTCHK asks for data to compare with.
fn compares_nothing(cdb: &[u8]) -> bool {
    cdb[1] & 0x02 == 0
}

/// Without POLLED the drive would keep the command until something happens.
fn is_polled(cdb: &[u8]) -> bool {
    cdb[1] & 0x01 != 0
}

/// SP makes the drive keep what is set beyond its use.
fn is_not_kept(cdb: &[u8]) -> bool {
    cdb[1] & 0x01 == 0
}

/// Of CSS: session, challenge, keys, title, and which region the drive is set to.
fn asks_for_a_css_key(cdb: &[u8]) -> bool {
    cdb[7] == 0 && [0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x3f].contains(&(cdb[10] & 0x3f))
}

/// Of CSS: the challenge, the key, the end of a session; but not the region, which can be set five times only.
fn sends_a_css_key(cdb: &[u8]) -> bool {
    cdb[7] == 0 && [0x01, 0x03, 0x3f].contains(&(cdb[10] & 0x3f))
}

macro_rules! rules {
    ($($code:literal $name:literal $mode:ident $patience:ident $moves:expr, $fits:ident;)*) => {
        /// The commands that are passed on, by their codes.
        pub const RULES: &[Rule] = &[$(Rule {
            code: $code,
            name: $name,
            changes: rules!($mode),
            patience: Patience::$patience,
            moves: $moves,
            fits: $fits,
        },)*];
    };
    (read) => { false };
    (burn) => { true };
}

rules! {
    0x00 "TEST UNIT READY" read Usual Moves::Nothing, any;
    0x03 "REQUEST SENSE" read Usual Moves::In(4..5), any;
    0x04 "FORMAT UNIT" burn Long Moves::OutFormat, any;
    0x12 "INQUIRY" read Usual Moves::In(3..5), any;
    0x15 "MODE SELECT(6)" burn Usual Moves::Out(4..5), is_not_kept;
    0x1a "MODE SENSE(6)" read Usual Moves::In(4..5), any;
    0x1b "START STOP UNIT" read Slow Moves::Nothing, moves_the_tray;
    0x1e "PREVENT ALLOW MEDIUM REMOVAL" read Usual Moves::Nothing, any;
    0x23 "READ FORMAT CAPACITIES" read Usual Moves::In(7..9), any;
    0x25 "READ CAPACITY" read Usual Moves::InFixed(8), any;
    0x28 "READ(10)" read Slow Moves::InSectors(7..9), any;
    0x2a "WRITE(10)" burn Slow Moves::OutSectors(7..9), any;
    0x2b "SEEK(10)" read Usual Moves::Nothing, any;
    0x2e "WRITE AND VERIFY(10)" burn Slow Moves::OutSectors(7..9), any;
    0x2f "VERIFY(10)" read Long Moves::Nothing, compares_nothing;
    0x35 "SYNCHRONIZE CACHE" burn Long Moves::Nothing, any;
    0x42 "READ SUB-CHANNEL" read Usual Moves::In(7..9), any;
    0x43 "READ TOC/PMA/ATIP" read Usual Moves::In(7..9), any;
    0x44 "READ HEADER" read Usual Moves::In(7..9), any;
    0x45 "PLAY AUDIO(10)" read Slow Moves::Nothing, any;
    0x46 "GET CONFIGURATION" read Usual Moves::In(7..9), any;
    0x47 "PLAY AUDIO MSF" read Slow Moves::Nothing, any;
    0x4a "GET EVENT STATUS NOTIFICATION" read Usual Moves::In(7..9), is_polled;
    0x4b "PAUSE/RESUME" read Usual Moves::Nothing, any;
    0x4e "STOP PLAY/SCAN" read Usual Moves::Nothing, any;
    0x51 "READ DISC INFORMATION" read Usual Moves::In(7..9), any;
    0x52 "READ TRACK INFORMATION" read Usual Moves::In(7..9), any;
    0x53 "RESERVE TRACK" burn Slow Moves::Nothing, any;
    0x54 "SEND OPC INFORMATION" burn Slow Moves::Out(7..9), any;
    0x55 "MODE SELECT(10)" burn Usual Moves::Out(7..9), is_not_kept;
    0x58 "REPAIR TRACK" burn Slow Moves::Nothing, any;
    0x5a "MODE SENSE(10)" read Usual Moves::In(7..9), any;
    0x5b "CLOSE TRACK/SESSION" burn Long Moves::Nothing, any;
    0x5c "READ BUFFER CAPACITY" read Usual Moves::In(7..9), any;
    0x5d "SEND CUE SHEET" burn Usual Moves::Out(6..9), any;
    0xa1 "BLANK" burn Long Moves::Nothing, any;
    0xa3 "SEND KEY" read Usual Moves::Out(8..10), sends_a_css_key;
    0xa4 "REPORT KEY" read Usual Moves::In(8..10), asks_for_a_css_key;
    0xa5 "PLAY AUDIO(12)" read Slow Moves::Nothing, any;
    0xa6 "LOAD/UNLOAD MEDIUM" read Slow Moves::Nothing, any;
    0xa7 "SET READ AHEAD" read Usual Moves::Nothing, any;
    0xa8 "READ(12)" read Slow Moves::InSectors(6..10), any;
    0xaa "WRITE(12)" burn Slow Moves::OutSectors(6..10), any;
    0xac "GET PERFORMANCE" read Usual Moves::InAny, any;
    0xad "READ DISC STRUCTURE" read Usual Moves::In(8..10), any;
    0xb6 "SET STREAMING" read Usual Moves::Out(9..11), any;
    0xb9 "READ CD MSF" read Slow Moves::InParts(0..0), any;
    0xbb "SET CD SPEED" read Usual Moves::Nothing, any;
    0xbd "MECHANISM STATUS" read Usual Moves::In(8..10), any;
    0xbe "READ CD" read Slow Moves::InParts(6..9), any;
    0xbf "SEND DISC STRUCTURE" burn Slow Moves::Out(8..10), any;
}

#[cfg(test)]
mod tests {
    use super::*;

    use Direction::{In, None, Out};

    #[test]
    fn what_players_and_rippers_say_is_passed_on_in_either_mode() {
        for (what, cdb, direction, length) in [
            ("TEST UNIT READY", &[0x00, 0, 0, 0, 0, 0][..], None, 0),
            ("INQUIRY", &[0x12, 0, 0, 0, 36, 0], In, 36),
            ("INQUIRY in twelve bytes", &[0x12, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0], In, 36),
            ("READ CAPACITY", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], In, 8),
            ("READ(10) of 16 sectors", &[0x28, 0, 0, 0, 0, 16, 0, 0, 16, 0], In, 32768),
            ("READ(10) of none", &[0x28, 0, 0, 0, 0, 16, 0, 0, 0, 0], None, 0),
            ("READ(12)", &[0xa8, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0], In, 2048),
            ("READ CD of raw audio", &[0xbe, 4, 0, 0, 0, 0, 0, 0, 2, 0xf8, 0, 0], In, 4704),
            ("READ CD with subchannel", &[0xbe, 4, 0, 0, 0, 0, 0, 0, 1, 0xf8, 1, 0], In, 2448),
            ("READ CD MSF", &[0xb9, 4, 0, 0, 2, 0, 0, 2, 1, 0xf8, 0, 0], In, 2352),
            ("READ TOC", &[0x43, 2, 0, 0, 0, 0, 1, 3, 36, 0], In, 804),
            ("READ TOC, as Linux asks for sessions", &[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x40], In, 12),
            ("GET CONFIGURATION", &[0x46, 0, 0, 0, 0, 0, 0, 0, 8, 0], In, 8),
            ("GET EVENT STATUS", &[0x4a, 1, 0, 0, 16, 0, 0, 0, 8, 0], In, 8),
            ("MODE SENSE", &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128, 0], In, 128),
            ("eject", &[0x1b, 0, 0, 0, 2, 0], None, 0),
            ("load", &[0x1b, 0, 0, 0, 3, 0], None, 0),
            ("lock the tray", &[0x1e, 0, 0, 0, 1, 0], None, 0),
            ("SET CD SPEED", &[0xbb, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0], None, 0),
            ("REPORT KEY: AGID", &[0xa4, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], In, 8),
            ("REPORT KEY: region", &[0xa4, 0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 0], In, 8),
            ("REPORT KEY: end", &[0xa4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x3f, 0], None, 0),
            ("SEND KEY: challenge", &[0xa3, 0, 0, 0, 0, 0, 0, 0, 0, 16, 1, 0], Out, 16),
            ("READ DVD STRUCTURE", &[0xad, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], In, 8),
            ("GET PERFORMANCE", &[0xac, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], In, 24),
        ] {
            for read_only in [true, false] {
                let judged = judge(cdb, direction, length, read_only);
                assert!(judged.is_ok_and(|judged| !judged.changes), "{what}: {judged:?}");
            }
        }
    }

    #[test]
    fn burning_is_for_drives_that_may_write() {
        for (what, cdb, direction, length) in [
            ("WRITE(10)", &[0x2a, 0, 0, 0, 0, 16, 0, 0, 16, 0][..], Out, 32768),
            ("WRITE(10) of raw sectors", &[0x2a, 0, 0, 0, 0, 16, 0, 0, 2, 0], Out, 4704),
            ("WRITE(12)", &[0xaa, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0], Out, 2048),
            ("WRITE AND VERIFY", &[0x2e, 0, 0, 0, 0, 16, 0, 0, 1, 0], Out, 2048),
            ("MODE SELECT(10)", &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 60, 0], Out, 60),
            ("MODE SELECT(6)", &[0x15, 0x10, 0, 0, 12, 0], Out, 12),
            ("RESERVE TRACK", &[0x53, 0, 0, 0, 0, 0, 0, 1, 0, 0], None, 0),
            ("CLOSE TRACK", &[0x5b, 1, 2, 0, 0, 0, 0, 0, 0, 0], None, 0),
            ("SYNCHRONIZE CACHE", &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, 0),
            ("BLANK", &[0xa1, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, 0),
            ("FORMAT UNIT", &[0x04, 0x11, 0, 0, 0, 0], Out, 12),
            ("SEND OPC", &[0x54, 1, 0, 0, 0, 0, 0, 0, 0, 0], None, 0),
            ("SEND CUE SHEET", &[0x5d, 0, 0, 0, 0, 0, 0, 0, 32, 0], Out, 32),
            ("REPAIR TRACK", &[0x58, 0, 0, 0, 0, 1, 0, 0, 0, 0], None, 0),
            ("SEND DISC STRUCTURE", &[0xbf, 0, 0, 0, 0, 0, 0, 0, 0, 8, 5, 0], Out, 8),
        ] {
            assert_eq!(judge(cdb, direction, length, true), Err(Refused::Protected), "{what}");
            let judged = judge(cdb, direction, length, false);
            assert!(judged.is_ok_and(|judged| judged.changes), "{what}: {judged:?}");
        }
    }

    #[test]
    fn firmware_vendors_commands_and_whatever_is_unknown_are_refused() {
        let known: Vec<u8> = RULES.iter().map(|rule| rule.code).collect();
        for code in (0..=255).filter(|code| !known.contains(code)) {
            let mut cdb = [0; 16];
            cdb[0] = code;
            for (direction, length) in [(None, 0), (In, 512), (Out, 512)] {
                assert_eq!(judge(&cdb, direction, length, false), Err(Refused::Unknown), "{code:#04x}");
            }
        }
        for (what, code) in [
            ("WRITE BUFFER", 0x3b),
            ("READ BUFFER", 0x3c),
            ("SEND DIAGNOSTIC", 0x1d),
            ("LOG SELECT", 0x4c),
            ("PERSISTENT RESERVE OUT", 0x5f),
            ("RESERVE(6)", 0x16),
            ("SECURITY PROTOCOL OUT", 0xb5),
            ("ATA PASS-THROUGH(12), or BLANK to nobody", 0x85),
            ("a vendor's of group 6", 0xc0),
            ("a vendor's of group 7", 0xff),
        ] {
            assert!(!known.contains(&code), "{what}");
        }
        assert_eq!(judge(&[], None, 0, false), Err(Refused::Unknown));
    }

    #[test]
    fn fields_that_would_do_more_are_refused() {
        for (what, cdb, direction, length) in [
            ("sets the region", &[0xa3, 0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0][..], Out, 8),
            ("a key of another kind", &[0xa3, 0, 0, 0, 0, 0, 0, 2, 0, 16, 1, 0], Out, 16),
            ("asks for another kind of key", &[0xa4, 0, 0, 0, 0, 0, 0, 2, 0, 8, 0, 0], In, 8),
            ("asks for a key of an unknown format", &[0xa4, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0x11, 0], In, 8),
            ("puts the drive to sleep", &[0x1b, 0, 0, 0, 0x50, 0], None, 0),
            ("waits for an event", &[0x4a, 0, 0, 0, 16, 0, 0, 0, 8, 0], In, 8),
            ("keeps what it sets", &[0x55, 0x11, 0, 0, 0, 0, 0, 0, 60, 0], Out, 60),
            ("keeps what it sets", &[0x15, 0x11, 0, 0, 12, 0], Out, 12),
            ("compares with data", &[0x2f, 2, 0, 0, 0, 0, 0, 0, 1, 0], None, 0),
            ("links commands", &[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x01], In, 12),
            ("has a vendor's bit", &[0x00, 0, 0, 0, 0, 0x80], None, 0),
            ("has more behind its end", &[0x12, 0, 0, 0, 36, 0, 0, 1], In, 36),
            ("is too short", &[0x28, 0, 0, 0, 0, 16, 0, 0, 16], In, 32768),
        ] {
            assert_eq!(judge(cdb, direction, length, false), Err(Refused::Field), "{what}");
        }
    }

    #[test]
    fn a_length_that_does_not_fit_the_command_is_refused() {
        for (what, cdb, direction, length) in [
            ("less room than is asked for", &[0x12, 0, 0, 0, 96, 0][..], In, 36),
            ("no room", &[0x12, 0, 0, 0, 36, 0], None, 0),
            ("the wrong way", &[0x12, 0, 0, 0, 36, 0], Out, 36),
            ("one sector too many", &[0x28, 0, 0, 0, 0, 16, 0, 0, 17, 0], In, 32768),
            ("all sectors", &[0xa8, 0, 0, 0, 0, 16, 0xff, 0xff, 0xff, 0xff, 0, 0], In, 32768),
            ("beyond the limit", &[0x28, 0, 0, 0, 0, 16, 2, 1, 0, 0], In, 513 * 2048),
            ("raw sectors", &[0xbe, 4, 0, 0, 0, 0, 0, 0, 2, 0xf8, 0, 0], In, 4095),
            ("subchannel", &[0xbe, 4, 0, 0, 0, 0, 0, 0, 1, 0xf8, 1, 0], In, 2143),
            ("eight bytes", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], In, 7),
            ("data where there is none", &[0x00, 0, 0, 0, 0, 0], In, 8),
            ("data where there is none", &[0x1b, 0, 0, 0, 2, 0], Out, 8),
            ("less than is to be written", &[0x2a, 0, 0, 0, 0, 16, 0, 0, 16, 0], Out, 2048),
            ("more than is to be written", &[0x2a, 0, 0, 0, 0, 16, 0, 0, 1, 0], Out, 4096),
            ("no data to be written", &[0x2a, 0, 0, 0, 0, 16, 0, 0, 1, 0], None, 0),
            ("data for no sector", &[0x2a, 0, 0, 0, 0, 16, 0, 0, 0, 0], Out, 2048),
            ("another list", &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 60, 0], Out, 59),
            ("a list that was not announced", &[0x04, 0x01, 0, 0, 0, 0], Out, 12),
            ("a list that does not come", &[0x04, 0x11, 0, 0, 0, 0], None, 0),
            ("a long list", &[0x04, 0x11, 0, 0, 0, 0], Out, 65),
        ] {
            assert_eq!(judge(cdb, direction, length, false), Err(Refused::Field), "{what}");
        }
    }

    #[test]
    fn the_table_has_each_code_once_and_in_order() {
        assert!(RULES.windows(2).all(|pair| pair[0].code < pair[1].code));
    }

    #[test]
    fn refusals_are_told_as_a_drive_would() {
        let told = [Refused::Unknown, Refused::Field, Refused::Protected].map(|refused| {
            let Sense { key, code, qualifier } = refused.sense();
            (key, code, qualifier)
        });
        assert_eq!(told, [(0x05, 0x20, 0x00), (0x05, 0x24, 0x00), (0x07, 0x27, 0x00)]);
    }
}
