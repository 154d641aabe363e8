//! The kernel's end of the socket.

use std::collections::HashSet;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::super::{Served, serve};
use super::DEADLINE;
use super::device::{FakeDevice, description};

/// The virtual host controller, for one port.
pub(super) struct Kernel {
    socket: UnixStream,
    served: Option<Served>,
    /// The transfers towards the device.
    towards: HashSet<u32>,
}

/// A transfer as the kernel asks for it.
#[derive(Clone, Debug)]
pub(super) struct Submitted {
    pub(super) seqnum: u32,
    pub(super) endpoint: u32,
    pub(super) is_in: bool,
    pub(super) length: u32,
    pub(super) interval: u32,
    pub(super) setup: [u8; 8],
    pub(super) packets: Vec<(u32, u32)>,
    pub(super) data: Vec<u8>,
}

/// What the kernel is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Submit { seqnum: u32, status: i32, actual: u32, packets: u32, errors: u32, data: Vec<u8> },
    Unlink { seqnum: u32, status: i32 },
}

impl Submitted {
    pub(super) fn to(seqnum: u32, endpoint: u32, is_in: bool, length: u32) -> Self {
        let (packets, data) = (Vec::new(), Vec::new());
        Self { seqnum, endpoint, is_in, length, interval: 0, setup: [0; 8], packets, data }
    }

    pub(super) fn control_in(seqnum: u32, setup: [u8; 8]) -> Self {
        let length = u32::from(u16::from_le_bytes([setup[6], setup[7]]));
        Self { setup, ..Self::to(seqnum, 0, true, length) }
    }

    pub(super) fn bulk_in(seqnum: u32, length: u32) -> Self {
        Self::to(seqnum, 1, true, length)
    }

    pub(super) fn bulk_out(seqnum: u32, data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..Self::to(seqnum, 2, false, u32::try_from(data.len()).unwrap()) }
    }

    pub(super) fn header(&self) -> Vec<u8> {
        let packets = u32::try_from(self.packets.len()).unwrap();
        let is_in = u32::from(self.is_in);
        let fields = [1, self.seqnum, 0x0001_0002, is_in, self.endpoint, 0, self.length, 0, packets, self.interval];
        fields.into_iter().flat_map(u32::to_be_bytes).chain(self.setup).collect()
    }
}

impl Heard {
    pub(super) fn submit(seqnum: u32, status: i32, data: &[u8]) -> Self {
        let actual = u32::try_from(data.len()).unwrap();
        Self::Submit { seqnum, status, actual, packets: 0, errors: 0, data: data.to_vec() }
    }

    pub(super) fn moved(seqnum: u32, status: i32, actual: u32) -> Self {
        Self::Submit { seqnum, status, actual, packets: 0, errors: 0, data: Vec::new() }
    }
}

impl Kernel {
    pub(super) fn plug_in(device: &Arc<FakeDevice>) -> Self {
        let (ours, theirs) = StdStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let served = serve(ours, description(), device.queue()).unwrap();
        Self { socket: UnixStream::from_std(theirs).unwrap(), served: Some(served), towards: HashSet::new() }
    }

    pub(super) async fn send(&mut self, submitted: &Submitted) {
        if !submitted.is_in {
            self.towards.insert(submitted.seqnum);
        }
        let mut pdu = submitted.header();
        pdu.extend_from_slice(&submitted.data);
        for (offset, length) in &submitted.packets {
            pdu.extend_from_slice(&offset.to_be_bytes());
            pdu.extend_from_slice(&length.to_be_bytes());
            pdu.extend_from_slice(&[0; 8]);
        }
        self.send_bytes(&pdu).await;
    }

    pub(super) async fn unlink(&mut self, seqnum: u32, target: u32) {
        let fields = [2, seqnum, 0x0001_0002, 0, 0, target].into_iter().flat_map(u32::to_be_bytes);
        let pdu: Vec<u8> = fields.chain([0; 24]).collect();
        self.send_bytes(&pdu).await;
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        tokio::time::timeout(DEADLINE, self.socket.write_all(bytes)).await.unwrap().unwrap();
    }

    /// The next thing that the kernel is told, which has no packets.
    pub(super) async fn hear(&mut self) -> Heard {
        self.hear_packets(0).await.0
    }

    /// The same with so many packets: offset, length, bytes moved and status of each.
    pub(super) async fn hear_packets(&mut self, count: u32) -> (Heard, Vec<(u32, u32, u32, i32)>) {
        let header = self.read(48).await;
        let field = |place: usize| u32::from_be_bytes(header[place * 4..place * 4 + 4].try_into().unwrap());
        assert_eq!([field(2), field(3), field(4)], [0; 3]);
        let (seqnum, status) = (field(1), field(5).cast_signed());
        if field(0) == 4 {
            return (Heard::Unlink { seqnum, status }, Vec::new());
        }
        let (actual, packets, errors) = (field(6), field(8), field(9));
        assert_eq!((field(0), packets), (3, count));
        // The answer does not tell in which direction it was.
        let data = if self.towards.contains(&seqnum) { Vec::new() } else { self.read(actual as usize).await };
        let list = self.read(packets as usize * 16).await;
        let list = list.chunks_exact(16).map(|packet| {
            let field = |place: usize| u32::from_be_bytes(packet[place * 4..place * 4 + 4].try_into().unwrap());
            (field(0), field(1), field(2), field(3).cast_signed())
        });
        (Heard::Submit { seqnum, status, actual, packets, errors, data }, list.collect())
    }

    pub(super) async fn until_closed(&mut self) {
        let mut rest = Vec::new();
        // Closed or reset, as much as unread bytes decide.
        drop(tokio::time::timeout(DEADLINE, self.socket.read_to_end(&mut rest)).await.unwrap());
        assert_eq!(rest, [0_u8; 0]);
    }

    pub(super) async fn hang_up(&mut self) {
        self.socket.shutdown().await.unwrap();
    }

    /// The daemon lets go of the device.
    pub(super) fn let_go(&mut self) {
        self.served = None;
    }

    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        tokio::time::timeout(DEADLINE, self.socket.read_exact(&mut bytes)).await.unwrap().unwrap();
        bytes
    }
}
