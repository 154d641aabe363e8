//! A six-digit code, typed once, turns two strangers into peers (protocol.md, "Pairing").
//!
//! The machine that shows the code is the host, the one where it is typed the joiner. SPAKE2 turns the code into a key
//! that only those know who know the code; each attempt tests one code, so that guessing takes as many attempts as
//! there are codes, and the host allows three in two minutes. What confirms the key also covers both fingerprints and
//! a secret of the TLS session, so that nobody in the middle can relay it.

use std::time::{Duration, Instant};

use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use netbus_proto::ids::Fingerprint;
use netbus_proto::wire::control::{Control, PairMessage, PairProof, Reason, Refusal};
use sha2::Sha256;
use spake2::{Ed25519Group, Identity, Password, Spake2};

/// How long a code is good.
pub const WINDOW: Duration = Duration::from_secs(120);

/// Attempts on one code.
pub const TRIES: u32 = 3;

/// How long one attempt may take, so that one that hangs does not keep others out.
const ATTEMPT: Duration = Duration::from_secs(20);

/// The host's side: one code, from its showing until it was used, used up or too old.
pub struct HostWindow {
    code: String,
    closes: Instant,
    tries: u32,
    attempt: Option<Attempt>,
}

/// What the host does about a message.
#[derive(Debug)]
pub enum HostOutcome {
    /// It answers.
    Answer(Control),
    /// The joiner has proved the code and knows that the host has, too. The host stores it, then answers.
    Paired,
}

/// One joiner's try.
struct Attempt {
    link: u64,
    ends: Instant,
    stage: Stage,
}

enum Stage {
    /// The joiner has to prove the code.
    Answered(Proofs),
    /// It has proved it; it is to say that the host has, too.
    Proved,
}

/// The system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("The system gave no random numbers to make a code of")]
pub struct NoCode;

impl HostWindow {
    /// A new code.
    ///
    /// # Errors
    /// [`NoCode`].
    pub fn open(now: Instant) -> Result<Self, NoCode> {
        Ok(Self { code: random_code()?, closes: now + WINDOW, tries: TRIES, attempt: None })
    }

    /// The code to show: six digits.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// How long it is still good.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Duration {
        self.closes.saturating_duration_since(now)
    }

    /// Whether the code is of no use any more.
    #[must_use]
    pub fn is_closed(&self, now: Instant) -> bool {
        now >= self.closes || self.tries == 0
    }

    /// A message of the joiner on `link`, whose key and the host's own are `(host, joiner)`.
    pub fn handle_message(
        &mut self,
        link: u64,
        (host, joiner): (Fingerprint, Fingerprint),
        exporter: [u8; 32],
        message: Control,
        now: Instant,
    ) -> HostOutcome {
        if self.attempt.as_ref().is_some_and(|attempt| now >= attempt.ends) {
            self.fail_attempt();
        }
        if self.is_closed(now) {
            return refuse(
                Reason::PairingClosed,
                "The code is used up or too old: show a new one with `netbus pair --show-code` and type that",
            );
        }
        if self.attempt.as_ref().is_some_and(|attempt| attempt.link != link) {
            return refuse(Reason::Busy, "Another machine is pairing there at this moment: try again");
        }
        match (message, self.attempt.take().map(|attempt| attempt.stage)) {
            (Control::PairStart(start), None) => {
                let (spake, answer) = Spake2::<Ed25519Group>::start_b(
                    &Password::new(&self.code),
                    &Identity::new(&joiner.0),
                    &Identity::new(&host.0),
                );
                let Some(proofs) = Proofs::of(spake, &start.message, &answer, &start.message, joiner, host, exporter)
                else {
                    return self.wrong();
                };
                self.attempt = Some(Attempt { link, ends: now + ATTEMPT, stage: Stage::Answered(proofs) });
                HostOutcome::Answer(Control::PairAnswer(PairMessage { message: answer }))
            }
            (Control::PairConfirm(proof), Some(Stage::Answered(proofs))) => {
                if !proofs.joiner.verifies(&proof.mac) {
                    return self.wrong();
                }
                self.attempt = Some(Attempt { link, ends: now + ATTEMPT, stage: Stage::Proved });
                HostOutcome::Answer(Control::PairProved(PairProof { mac: proofs.host.mac() }))
            }
            (Control::PairDone, Some(Stage::Proved)) => HostOutcome::Paired,
            (_, stage) => {
                // Whoever has begun and goes on out of turn has used up a try.
                if stage.is_some() {
                    self.tries -= 1;
                }
                refuse(Reason::Protocol, "That message does not come here in a pairing")
            }
        }
    }

    /// A link is gone; an attempt on it has failed.
    pub fn handle_link_lost(&mut self, link: u64, _now: Instant) {
        if self.attempt.as_ref().is_some_and(|attempt| attempt.link == link) {
            self.fail_attempt();
        }
    }

    fn fail_attempt(&mut self) {
        self.attempt = None;
        self.tries = self.tries.saturating_sub(1);
    }

    fn wrong(&mut self) -> HostOutcome {
        self.fail_attempt();
        match self.tries {
            0 => refuse(
                Reason::PairingClosed,
                "The code is wrong and was the last try: show a new one with `netbus pair --show-code` and type that",
            ),
            1 => refuse(Reason::WrongCode, "The code is wrong: one try is left"),
            left => refuse(Reason::WrongCode, &format!("The code is wrong: {left} tries are left")),
        }
    }
}

/// The joiner's side: one attempt.
pub struct Joiner {
    spake: Option<Spake2<Ed25519Group>>,
    start: Vec<u8>,
    identities: (Fingerprint, Fingerprint),
    exporter: [u8; 32],
    host_proof: Option<Proof>,
    proved: bool,
}

/// What the joiner does about a message.
#[derive(Debug)]
pub enum JoinerOutcome {
    /// It answers.
    Answer(Control),
    /// The host has proved the code and has stored this machine.
    Paired,
    /// The host refuses.
    Refused {
        /// The stable reason.
        reason: Reason,
        /// The host's words.
        text: String,
    },
    /// The other side does not know the code, or does not do as a host does.
    Impostor,
}

impl Joiner {
    /// An attempt with the code that was typed.
    #[must_use]
    pub fn new(code: &str, joiner: Fingerprint, host: Fingerprint, exporter: [u8; 32]) -> Self {
        let (spake, start) =
            Spake2::<Ed25519Group>::start_a(&Password::new(code), &Identity::new(&joiner.0), &Identity::new(&host.0));
        let identities = (joiner, host);
        Self { spake: Some(spake), start, identities, exporter, host_proof: None, proved: false }
    }

    /// The first message.
    #[must_use]
    pub fn start(&self) -> Control {
        Control::PairStart(PairMessage { message: self.start.clone() })
    }

    /// A message of the host.
    pub fn handle_message(&mut self, message: Control, _now: Instant) -> JoinerOutcome {
        let (joiner, host) = self.identities;
        match (message, self.spake.take(), self.host_proof.take()) {
            (Control::PairRefused(refusal), _, _) => {
                JoinerOutcome::Refused { reason: refusal.reason, text: refusal.text }
            }
            (Control::PairAnswer(answer), Some(spake), None) => {
                let theirs = &answer.message;
                match Proofs::of(spake, &self.start, theirs, theirs, joiner, host, self.exporter) {
                    Some(proofs) => {
                        self.host_proof = Some(proofs.host);
                        JoinerOutcome::Answer(Control::PairConfirm(PairProof { mac: proofs.joiner.mac() }))
                    }
                    None => JoinerOutcome::Impostor,
                }
            }
            (Control::PairProved(proof), None, Some(expected)) if expected.verifies(&proof.mac) => {
                self.proved = true;
                JoinerOutcome::Answer(Control::PairDone)
            }
            (Control::PairStored, None, None) if self.proved => JoinerOutcome::Paired,
            _ => JoinerOutcome::Impostor,
        }
    }
}

/// What each side shows to prove that it knows the code.
struct Proofs {
    joiner: Proof,
    host: Proof,
}

impl Proofs {
    /// From a SPAKE2 run whose messages were `start` and `answer`, the other side's being `theirs`.
    fn of(
        spake: Spake2<Ed25519Group>,
        start: &[u8],
        answer: &[u8],
        theirs: &[u8],
        joiner: Fingerprint,
        host: Fingerprint,
        exporter: [u8; 32],
    ) -> Option<Self> {
        let key = spake.finish(theirs).ok()?;
        let keys = Hkdf::<Sha256>::new(Some(&exporter), &key);
        let transcript = [&joiner.0[..], &host.0[..], start, answer].concat();
        let proof = |info: &[u8]| {
            let mut key = [0; 32];
            keys.expand(info, &mut key).expect("32 bytes are within HKDF's limit");
            Proof { key, transcript: transcript.clone() }
        };
        Some(Self { joiner: proof(b"netbus/1 pairing joiner"), host: proof(b"netbus/1 pairing host") })
    }
}

struct Proof {
    key: [u8; 32],
    transcript: Vec<u8>,
}

impl Proof {
    fn mac(&self) -> [u8; 32] {
        self.hmac().finalize().into_bytes().into()
    }

    /// In constant time.
    fn verifies(&self, mac: &[u8; 32]) -> bool {
        self.hmac().verify_slice(mac).is_ok()
    }

    fn hmac(&self) -> Hmac<Sha256> {
        Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length").chain_update(&self.transcript)
    }
}

/// Six digits, each code as likely as any other.
fn random_code() -> Result<String, NoCode> {
    const CODES: u32 = 1_000_000;
    loop {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).map_err(|_| NoCode)?;
        let number = u32::from_ne_bytes(bytes);
        // Numbers beyond the last whole round of codes would favour the low codes.
        if number < u32::MAX - u32::MAX % CODES {
            return Ok(format!("{:06}", number % CODES));
        }
    }
}

fn refuse(reason: Reason, text: &str) -> HostOutcome {
    HostOutcome::Answer(Control::PairRefused(Refusal { reason, text: text.to_owned() }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HOST: Fingerprint = Fingerprint([1; 32]);
    const JOINER: Fingerprint = Fingerprint([2; 32]);
    const EXPORTER: [u8; 32] = [3; 32];

    #[test]
    fn the_right_code_pairs_both() {
        let mut host = HostWindow::open(Instant::now()).unwrap();
        let mut joiner = Joiner::new(host.code(), JOINER, HOST, EXPORTER);
        assert_eq!(attempt(&mut host, &mut joiner, 1), "paired");
    }

    #[test]
    fn the_third_wrong_code_closes_the_window_even_for_the_right_one() {
        let mut host = HostWindow::open(Instant::now()).unwrap();
        let wrong = if host.code() == "000000" { "000001" } else { "000000" };
        let right = host.code().to_owned();
        for (link, expected) in [(1, Reason::WrongCode), (2, Reason::WrongCode), (3, Reason::PairingClosed)] {
            let mut joiner = Joiner::new(wrong, JOINER, HOST, EXPORTER);
            assert_eq!(attempt(&mut host, &mut joiner, link), format!("{expected:?}"));
        }
        assert!(host.is_closed(Instant::now()));
        let mut joiner = Joiner::new(&right, JOINER, HOST, EXPORTER);
        assert_eq!(attempt(&mut host, &mut joiner, 4), "PairingClosed");
    }

    #[test]
    fn a_relay_in_the_middle_fails_although_it_passes_everything_on() {
        let mut host = HostWindow::open(Instant::now()).unwrap();
        // The relay has one TLS session with each side, so the two export different secrets.
        let mut joiner = Joiner::new(host.code(), JOINER, HOST, [4; 32]);
        assert_eq!(attempt(&mut host, &mut joiner, 1), "WrongCode");
        // Or it shows each side its own key.
        let mut joiner = Joiner::new(host.code(), JOINER, Fingerprint([9; 32]), EXPORTER);
        assert_eq!(attempt(&mut host, &mut joiner, 2), "WrongCode");
    }

    #[test]
    fn whoever_hangs_up_or_hangs_after_the_first_answer_has_used_up_a_try() {
        let start = Instant::now();
        let mut host = HostWindow::open(start).unwrap();
        let joiner = Joiner::new("123456", JOINER, HOST, EXPORTER);
        let begin =
            |host: &mut HostWindow, link, now| host.handle_message(link, (HOST, JOINER), EXPORTER, joiner.start(), now);
        begin(&mut host, 1, start);
        host.handle_link_lost(1, start);
        begin(&mut host, 2, start);
        assert!(!host.is_closed(start));
        assert!(matches!(begin(&mut host, 3, start + ATTEMPT), HostOutcome::Answer(Control::PairAnswer(_))));
        host.handle_link_lost(3, start);
        assert!(host.is_closed(start));
    }

    #[test]
    fn one_machine_at_a_time_and_the_other_is_told() {
        let now = Instant::now();
        let mut host = HostWindow::open(now).unwrap();
        let first = Joiner::new(host.code(), JOINER, HOST, EXPORTER);
        host.handle_message(1, (HOST, JOINER), EXPORTER, first.start(), now);
        let mut second = Joiner::new(host.code(), Fingerprint([5; 32]), HOST, EXPORTER);
        assert_eq!(attempt(&mut host, &mut second, 2), "Busy");
    }

    #[test]
    fn an_old_code_is_refused() {
        let start = Instant::now();
        let mut host = HostWindow::open(start).unwrap();
        let joiner = Joiner::new(host.code(), JOINER, HOST, EXPORTER);
        let outcome = host.handle_message(1, (HOST, JOINER), EXPORTER, joiner.start(), start + WINDOW);
        let HostOutcome::Answer(Control::PairRefused(refusal)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(refusal.reason, Reason::PairingClosed);
    }

    #[test]
    fn a_host_that_does_not_know_the_code_is_found_out() {
        let mut joiner = Joiner::new("123456", JOINER, HOST, EXPORTER);
        let (_, answer) = Spake2::<Ed25519Group>::start_b(
            &Password::new("654321"),
            &Identity::new(&JOINER.0),
            &Identity::new(&HOST.0),
        );
        let now = Instant::now();
        joiner.handle_message(Control::PairAnswer(PairMessage { message: answer }), now);
        let guess = Control::PairProved(PairProof { mac: [0; 32] });
        assert!(matches!(joiner.handle_message(guess, now), JoinerOutcome::Impostor));
        assert!(matches!(joiner.handle_message(Control::PairStored, now), JoinerOutcome::Impostor));
    }

    #[test]
    fn a_message_out_of_turn_is_refused_and_a_malformed_point_does_not_panic() {
        let now = Instant::now();
        let mut host = HostWindow::open(now).unwrap();
        let outcome = host.handle_message(1, (HOST, JOINER), EXPORTER, Control::PairDone, now);
        assert!(matches!(outcome, HostOutcome::Answer(Control::PairRefused(_))));
        for message in [vec![0; 33], vec![0xff; 33], vec![0x41; 33]] {
            let start = Control::PairStart(PairMessage { message });
            host.handle_message(2, (HOST, JOINER), EXPORTER, start, now);
            host.handle_link_lost(2, now);
        }
        assert!(host.is_closed(now));
    }

    #[test]
    fn codes_have_six_digits_and_differ() {
        let codes: std::collections::BTreeSet<_> = (0..50).map(|_| random_code().unwrap()).collect();
        assert!(codes.iter().all(|code| code.len() == 6 && code.bytes().all(|digit| digit.is_ascii_digit())));
        assert!(codes.len() > 40);
    }

    /// Runs an attempt to its end: `paired`, or the reason of the refusal.
    fn attempt(host: &mut HostWindow, joiner: &mut Joiner, link: u64) -> String {
        let now = Instant::now();
        let mut message = joiner.start();
        loop {
            let joiner_key = joiner.identities.0;
            let answer = match host.handle_message(link, (HOST, joiner_key), EXPORTER, message, now) {
                HostOutcome::Answer(answer) => answer,
                HostOutcome::Paired => Control::PairStored,
            };
            message = match joiner.handle_message(answer, now) {
                JoinerOutcome::Answer(answer) => answer,
                JoinerOutcome::Paired => return "paired".to_owned(),
                JoinerOutcome::Refused { reason, .. } => return format!("{reason:?}"),
                JoinerOutcome::Impostor => return "impostor".to_owned(),
            };
        }
    }
}
