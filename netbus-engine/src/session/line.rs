//! What the line below a link is like, and what a link on a bad one does about it.
//!
//! On radio and over long ways some packets are always lost. Most systems take that for a line that is full and send less, the
//! less the longer the way is: at 20 ms there and back and one packet of a hundred lost that is about 6 Mbit/s, less than a film
//! has. BBR sends as much as arrives. It is taken for a link that needs it, since on others it is nothing but timers.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;

/// How often a link is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// A line on which a question takes so long, and so many packets are sent again in each of so many intervals, is bad. One that
/// is full loses many at once, and then none for seconds.
const FAR: Duration = Duration::from_millis(5);
const MANY: u32 = 3;
const INTERVALS: u32 = 2;

/// The places in what the kernel tells (`struct tcp_info`) of the time there and back in microseconds, and of how many packets were
/// sent again. It has told as much for as long as it has BBR.
const ROUND_TRIP: usize = 17;
const SENT_AGAIN: usize = 25;
type Told = [u32; SENT_AGAIN + 1];

/// One link's.
pub(super) struct Line {
    looked: Instant,
    watch: Watch,
    /// Nothing is to be done any more.
    settled: bool,
}

/// What was seen of it.
#[derive(Default)]
struct Watch {
    sent_again: u32,
    /// How many intervals in a row were bad.
    bad: u32,
}

impl Line {
    pub(super) fn new() -> Self {
        Self { looked: Instant::now(), watch: Watch::default(), settled: false }
    }

    /// Looks at the line if it is time to. To be called whenever something was received.
    pub(super) fn look(&mut self, stream: &TcpStream) {
        if self.settled || self.looked.elapsed() < INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let Ok(told) = tell(stream) else { return self.settled = true };
        if self.watch.is_bad(Duration::from_micros(told[ROUND_TRIP].into()), told[SENT_AGAIN]) {
            self.settled = true;
            // Without it the link is as it would be otherwise.
            let taken = SockRef::from(stream).set_tcp_congestion(b"bbr");
            tracing::debug!(is_taken = taken.is_ok(), "A line loses packets; BBR suits it better");
        }
    }
}

impl Watch {
    fn is_bad(&mut self, round_trip: Duration, sent_again: u32) -> bool {
        let lost = sent_again.wrapping_sub(std::mem::replace(&mut self.sent_again, sent_again));
        self.bad = if round_trip >= FAR && lost >= MANY { self.bad + 1 } else { 0 };
        self.bad >= INTERVALS
    }
}

/// What the kernel tells of a connection.
fn tell(stream: &TcpStream) -> io::Result<Told> {
    let mut told: Told = [0; SENT_AGAIN + 1];
    let mut length = libc::socklen_t::try_from(size_of::<Told>()).map_err(io::Error::other)?;
    // SAFETY: The descriptor is open as long as the stream is borrowed. The kernel writes at most `length` bytes, which `told` has
    // room for, and the number of those to `length`; any integers are valid in both.
    // JUSTIFICATION: No library that is used here has a safe function for this option.
    let status = unsafe {
        let place = (&raw mut told).cast::<libc::c_void>();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length)
    };
    if status == 0 { Ok(told) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_bad_that_is_long_and_goes_on_to_lose_packets() {
        let verdicts = |round_trip, sent_again: &[u32]| {
            let mut watch = Watch::default();
            sent_again.iter().map(|count| watch.is_bad(Duration::from_millis(round_trip), *count)).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(20, &[3, 6]), [false, true]);
        // Short; full, and so without losses for a while; clean.
        assert_eq!(verdicts(1, &[3, 6, 9]), [false; 3]);
        assert_eq!(verdicts(20, &[50, 50, 90, 91, 130]), [false; 5]);
        assert_eq!(verdicts(20, &[0, 0, 2, 4]), [false; 4]);
    }

    #[tokio::test]
    async fn what_the_kernel_tells_has_the_form_that_is_read() -> io::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        let told = tell(&stream)?;
        assert!(told[ROUND_TRIP] < 1_000_000, "{told:?}");
        assert_eq!(told[SENT_AGAIN], 0, "{told:?}");
        Ok(())
    }
}
