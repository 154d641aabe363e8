//! The block class from end to end on every system: an image file is published, and an NBD client reads and writes it.

use std::io::{Read, Write};

use netbus_engine::latency::report::ComponentReport;
use netbus_engine::latency::{Component, Operation};

/// What a client sees at a node of the `nbd` way, spoken as the NBD protocol's `doc/proto.md` has it.
struct NbdClient(Box<dyn Stream>);

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

const WRITE: u16 = 1;
const READ: u16 = 0;
const FLUSH: u16 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_file_is_used_elsewhere_by_nbd() {
    let (attic, desk) = crate::pair().await;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    attic.publish_device(&image.to_string_lossy(), "disk").await.unwrap();
    assert!(attic.devices().await.iter().any(|device| device.path.ends_with("disk.img") && device.size == 1 << 20));
    let node = desk.subscribe("attic/disk", false).await.unwrap();
    let size = tokio::task::spawn_blocking(move || {
        let (mut client, size) = NbdClient::connect(&node);
        assert_eq!(client.ask(READ, 512, 512, &[]), vec![7; 512]);
        client.ask(WRITE, 512 * 1024, 0, &[9; 4096]);
        client.ask(FLUSH, 0, 0, &[]);
        assert_eq!(client.ask(READ, 512 * 1024, 4096, &[]), vec![9; 4096]);
        size
    })
    .await
    .unwrap();
    assert_eq!(size, 1 << 20);
    // The client may have its reply before the writing of it is counted.
    crate::machine::until("all replies to be counted", async || {
        let report = desk.latency().await;
        let back = |times: &&ComponentReport| times.component == Component::Back;
        let counted = report.subscribed[0].components.iter().filter(back).map(|back| (back.operation, back.count));
        let expected = [(Operation::Read, 2), (Operation::Write, 1), (Operation::Flush, 1)];
        counted.eq(expected).then_some(())
    })
    .await;
    desk.unsubscribe("attic/disk").await.unwrap();
    attic.nobody_uses().await;
    let content = std::fs::read(&image).unwrap();
    assert_eq!((content.len(), content[512 * 1024], content[0]), (1 << 20, 9, 7));
}

impl NbdClient {
    /// Connects and gives the size that the server told.
    fn connect(node: &str) -> (Self, u64) {
        let (stream, export) = open(node);
        let mut client = Self(stream);
        // Greeting: two magic numbers and the server's flags.
        client.read(18);
        // Fixed newstyle, and no zeroes after the answer.
        client.0.write_all(&3_u32.to_be_bytes()).unwrap();
        let length = u32::try_from(export.len()).unwrap();
        let option = [b"IHAVEOPT", &1_u32.to_be_bytes()[..], &length.to_be_bytes()[..], export.as_bytes()].concat();
        client.0.write_all(&option).unwrap();
        let answer = client.read(10);
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        (client, size)
    }

    /// Sends a request and gives what it reads.
    fn ask(&mut self, kind: u16, offset: u64, reads: u32, data: &[u8]) -> Vec<u8> {
        let length = if data.is_empty() { reads } else { u32::try_from(data.len()).unwrap() };
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0_u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(42_u64.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        self.0.write_all(&request).unwrap();
        let reply = self.read(16);
        assert_eq!(&reply[4..8], [0; 4], "the server answers with an error");
        self.read(reads as usize)
    }

    fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// Connects to a node and gives the name of its export.
fn open(node: &str) -> (Box<dyn Stream>, String) {
    #[cfg(unix)]
    if let Some(rest) = node.strip_prefix("nbd+unix:///") {
        let (export, socket) = rest.split_once("?socket=").expect("a node names its socket");
        let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        return (Box::new(stream), export.to_owned());
    }
    let rest = node.strip_prefix("nbd://").expect("a node is an NBD address");
    let (address, export) = rest.split_once('/').expect("a node names its export");
    (Box::new(std::net::TcpStream::connect(address).unwrap()), export.to_owned())
}
