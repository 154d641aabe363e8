//! The node as a whole: what it is called, and how it goes away.

use std::path::Path;

use netbus_proto::class::block::Geometry;
use tokio::net::{TcpStream, ToSocketAddrs};

use super::client::{Client, wish};
use crate::class::block::frontend::nbd::fake_disk::FakeDisk;
use crate::class::block::frontend::nbd::{NbdFrontend, tcp};
use crate::frontend::{Frontend, Presentation, RemoveError};

const GEOMETRY: Geometry = Geometry { size: 1 << 20, block_size: 512 };

#[tokio::test]
async fn on_a_port_only_the_address_tells_the_name() {
    let fake = FakeDisk::new(GEOMETRY, 1000);
    let start =
        || NbdFrontend::start(tcp::bind().unwrap(), &presentation(Path::new("/unused")), GEOMETRY, fake.queue());
    let (mut frontend, other) = (start(), start());
    let node = frontend.node();
    let (address, name) = node.strip_prefix("nbd://").unwrap().split_once('/').unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{node}");
    assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{node}");
    assert!(!other.node().ends_with(name));

    let mut stranger = connect_tcp(address).await;
    stranger.greet(3).await;
    for guess in ["", "photos"] {
        stranger.option(7, &wish(guess, &[])).await;
        assert_eq!(stranger.option_reply(7).await.0, 0x8000_0006);
    }
    let mut client = connect_tcp(address).await;
    client.negotiate(name).await;
    assert_eq!(client.ask(3, 0, 0, 0).await, 0);

    assert!(matches!(frontend.remove(false).await, Err(RemoveError::Busy(_))));
    frontend.remove(true).await.unwrap();
    client.assert_closed().await;
    TcpStream::connect(address).await.unwrap_err();
}

async fn connect_tcp(address: impl ToSocketAddrs) -> Client<TcpStream> {
    Client::new(TcpStream::connect(address).await.unwrap())
}

fn presentation(runtime_dir: &Path) -> Presentation {
    Presentation {
        host: "attic".to_owned(),
        channel: "photos".to_owned(),
        device: minicbor::to_vec(GEOMETRY).unwrap().into(),
        read_only: false,
        runtime_dir: runtime_dir.to_owned(),
    }
}

#[cfg(unix)]
mod unix {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::Arc;

    use tokio::net::UnixStream;

    use super::*;
    use crate::class::PresentError;
    use crate::class::block::frontend::nbd::clients::MAX_CLIENTS;
    use crate::class::block::frontend::nbd::fake_disk::DEADLINE;

    struct Presented {
        frontend: NbdFrontend,
        fake: Arc<FakeDisk>,
        path: PathBuf,
        dir: tempfile::TempDir,
    }

    impl Presented {
        async fn new(room: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let fake = FakeDisk::new(GEOMETRY, room);
            let runtime_dir = dir.path().join("run");
            let frontend = NbdFrontend::present(presentation(&runtime_dir), GEOMETRY, fake.queue()).await.unwrap();
            Self { frontend, fake, path: runtime_dir.join("attic.photos.nbd"), dir }
        }

        async fn connect(&self) -> Client<UnixStream> {
            Client::new(UnixStream::connect(&self.path).await.unwrap())
        }

        async fn using(&self) -> Client<UnixStream> {
            let mut client = self.connect().await;
            client.negotiate("").await;
            client
        }
    }

    #[tokio::test]
    async fn the_socket_is_its_users_alone_and_the_node_names_it() {
        let presented = Presented::new(1000).await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&presented.path), 0o600);
        assert_eq!(mode(&presented.dir.path().join("run")), 0o700);
        let node = format!("nbd+unix:///photos?socket={}", presented.path.display());
        assert_eq!(presented.frontend.node(), node);
    }

    #[tokio::test]
    async fn a_channel_is_presented_only_once() {
        let presented = Presented::new(1000).await;
        let again = presentation(&presented.dir.path().join("run"));
        let again = NbdFrontend::present(again, GEOMETRY, presented.fake.queue()).await;
        assert!(matches!(again, Err(PresentError::System { .. })));
        assert_eq!(presented.using().await.ask(3, 0, 0, 0).await, 0);
    }

    #[tokio::test]
    async fn a_node_in_use_stays_whole_and_its_client_is_named() {
        let mut presented = Presented::new(1000).await;
        let mut client = presented.using().await;
        let Err(RemoveError::Busy(text)) = presented.frontend.remove(false).await else {
            panic!("A node in use must not be removed");
        };
        assert!(text.contains("1 client") && text.contains("by force"), "{text}");
        if cfg!(target_os = "linux") {
            assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
        }
        assert_eq!(client.ask(3, 0, 0, 0).await, 0);
        presented.using().await;

        drop(client);
        remove_when_free(&mut presented).await;
        assert!(!presented.path.exists());
        presented.frontend.remove(false).await.unwrap();
    }

    async fn remove_when_free(presented: &mut Presented) {
        let removed = tokio::time::timeout(DEADLINE, async {
            while matches!(presented.frontend.remove(false).await, Err(RemoveError::Busy(_))) {
                tokio::task::yield_now().await;
            }
        });
        removed.await.expect("the clients have left");
    }

    #[tokio::test]
    async fn removal_by_force_frees_clients_whose_requests_are_stuck_at_a_full_queue() {
        let mut presented = Presented::new(1).await;
        let mut client = presented.using().await;
        presented.fake.with(|state| state.stalled = true);
        client.request(3, 0, 1, 0, 0).await;
        client.request(3, 0, 2, 0, 0).await;
        presented.fake.until("the disk is full", |state| state.waiting == 1).await;

        let (removed, ()) = tokio::join!(presented.frontend.remove(true), async {
            let mut cookies = [client.reply().await, client.reply().await];
            cookies.sort_unstable();
            assert_eq!(cookies, [(1, 108), (2, 108)]);
            assert_eq!(client.ask(3, 0, 0, 0).await, 108);
            client.assert_closed().await;
        });
        removed.unwrap();
        assert!(!presented.path.exists());
        // What the device had taken is finished, what it had not is not sent any more.
        presented.fake.with(|state| state.stalled = false);
        presented.fake.until("the first flush is done", |state| state.done == ["flush"]).await;
    }

    #[tokio::test]
    async fn dropping_takes_the_node_away() {
        let presented = Presented::new(1000).await;
        let mut client = presented.using().await;
        drop(presented.frontend);
        assert!(!presented.path.exists());
        assert_eq!(client.ask(3, 0, 0, 0).await, 108);
        client.assert_closed().await;
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_a_free_place_is_given_again() {
        let presented = Presented::new(1000).await;
        let mut clients = Vec::new();
        for _ in 0..MAX_CLIENTS {
            clients.push(presented.using().await);
        }
        presented.connect().await.assert_closed().await;
        let mut last = clients.pop().unwrap();
        last.request(2, 0, 0, 0, 0).await;
        last.assert_closed().await;
        assert_eq!(clients[0].ask(3, 0, 0, 0).await, 0);
    }
}
