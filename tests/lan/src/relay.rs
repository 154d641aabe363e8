//! A cable with weather on it: a relay of Ethernet frames that delays, slows down, loses or swallows them.
//!
//! The relay sits between a host's port and the switch, below every protocol: TCP, multicast and address resolution
//! suffer alike, and no connection is told of anything. It needs no traffic shaper of the kernel's, which not every
//! kernel has: two TAP devices in the switch's namespace, and a thread here that carries frames between them.
//!
//! ```text
//! host eth0 ─ portN ─ lineN (bridge) ─ nearN (TAP) ═ this thread ═ farN (TAP) ─ br0
//! ```

use std::collections::VecDeque;
use std::io::{self, PipeWriter};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// How long the queue before a narrow line may be; what comes when it is full is lost, as in a router.
const QUEUE: Duration = Duration::from_secs(1);

/// The longest frame: an Ethernet header with a VLAN tag, and the usual payload.
const FRAME: usize = 1518;

/// Frames taken from one side before the other side has its turn.
const BURST: usize = 64;

/// What happens to the frames of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// How long each frame is on its way.
    pub delay: Duration,
    /// How many bits fit through in a second; `None` is as many as there are.
    pub rate: Option<u32>,
    /// Of a hundred frames, how many are lost. Nobody is told: at 100 the line is a black hole.
    pub loss: u8,
}

impl Weather {
    /// As if the relay were not there.
    pub const FINE: Self = Self { delay: Duration::ZERO, rate: None, loss: 0 };
    /// Everything vanishes.
    pub const BLACK_HOLE: Self = Self { loss: 100, ..Self::FINE };

    /// Frames that are on their way for this long.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::FINE }
    }
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the host to the others.
    Out,
    /// From the others to the host.
    In,
}

/// The relay before one host. While it lives, it carries; dropped, it leaves the host cut off.
pub struct Relay {
    sides: Arc<Mutex<[Weather; 2]>>,
    /// Closed to stop the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts to carry between two new TAP devices of the calling thread's namespace.
    pub(crate) fn start(near: &str, far: &str) -> anyhow::Result<Self> {
        let taps = [tap(near)?, tap(far)?];
        let sides = Arc::new(Mutex::new([Weather::FINE; 2]));
        let (stopped, stop) = io::pipe()?;
        let mut carrier = Carrier {
            taps,
            lines: [Line::default(), Line::default()],
            sides: Arc::clone(&sides),
            random: Rng::with_seed(1),
        };
        let thread =
            std::thread::Builder::new().name("relay".to_owned()).spawn(move || while carrier.turn(&stopped) {})?;
        Ok(Self { sides, stop: Some(stop), thread: Some(thread) })
    }

    /// Changes the weather in one direction, for frames that come from now on.
    pub fn set(&self, way: Way, weather: Weather) {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)[index(way)] = weather;
    }

    /// Changes the weather in both directions.
    pub fn set_both(&self, weather: Weather) {
        *self.sides.lock().unwrap_or_else(PoisonError::into_inner) = [weather; 2];
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

/// What comes from `taps[n]` goes through `lines[n]` to the other one.
struct Carrier {
    taps: [SyncDevice; 2],
    lines: [Line; 2],
    sides: Arc<Mutex<[Weather; 2]>>,
    random: Rng,
}

/// Frames on their way.
#[derive(Default)]
struct Line {
    /// In the order in which they arrive; the delay may have changed meanwhile, but frames do not overtake each other.
    frames: VecDeque<(Instant, Vec<u8>)>,
    /// When the narrow place is free again.
    free: Option<Instant>,
}

impl Carrier {
    /// Waits for something to do and does it; false when the relay is to stop.
    fn turn(&mut self, stopped: &io::PipeReader) -> bool {
        let due = self.lines.iter().filter_map(|line| line.frames.front()).map(|(due, _)| *due).min();
        let wait = due.and_then(|due| Timespec::try_from(due.saturating_duration_since(Instant::now())).ok());
        let mut ready = [
            PollFd::new(&self.taps[0], PollFlags::IN),
            PollFd::new(&self.taps[1], PollFlags::IN),
            PollFd::new(stopped, PollFlags::empty()),
        ];
        // Interrupted or not: whatever is there is seen below.
        let _ = poll(&mut ready, wait.as_ref());
        let stop = !ready[2].revents().is_empty();
        // Both sides are taken from before anybody hears anything and changes the weather upon it: what was sent before
        // meets the weather before.
        (0..2).for_each(|from| self.take(from));
        (0..2).for_each(|from| self.deliver(from));
        !stop
    }

    fn take(&mut self, from: usize) {
        let mut frame = [0; FRAME];
        for _ in 0..BURST {
            // Nothing there for now; a device that is gone shows at the other end.
            let Ok(length) = self.taps[from].recv(&mut frame) else { return };
            // Asked after the frame has come, which may be after a change that its sender has seen.
            let weather = self.sides.lock().unwrap_or_else(PoisonError::into_inner)[from];
            let lost = self.random.u8(..100) < weather.loss;
            if !lost {
                self.lines[from].enter(weather, frame[..length].to_vec());
            }
        }
    }

    fn deliver(&mut self, from: usize) {
        let now = Instant::now();
        while let Some((_, frame)) = self.lines[from].frames.pop_front_if(|(due, _)| *due <= now) {
            // A full queue or a pulled cable on the other side loses the frame, as a cable does.
            let _ = self.taps[1 - from].send(&frame);
        }
    }
}

impl Line {
    fn enter(&mut self, weather: Weather, frame: Vec<u8>) {
        let now = Instant::now();
        let begin = self.free.map_or(now, |free| free.max(now));
        if begin > now + QUEUE {
            return;
        }
        let bits = frame.len() as u64 * 8;
        let time = weather.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(bits) / rate.max(1));
        self.free = Some(begin + time);
        let earliest = self.frames.back().map_or(now, |(due, _)| *due);
        self.frames.push_back(((begin + time + weather.delay).max(earliest), frame));
    }
}

fn index(way: Way) -> usize {
    match way {
        Way::Out => 0,
        Way::In => 1,
    }
}

fn tap(name: &str) -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new().name(name).layer(Layer::L2).build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}
