#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::*;

const SIZE: u64 = 64 << 20;

#[tokio::test]
async fn a_reader_is_read_ahead_of_and_does_not_wait_for_an_absent_host() {
    let host = Arc::new(Host::default());
    let queue = reading_ahead(Queue::new(Arc::clone(&host) as _), SIZE);
    for number in 0..64 {
        assert_eq!(read(&queue, number * 65536, 65536).await.unwrap(), content(number * 65536, 65536));
    }
    // What was asked for ahead has arrived before the host went away.
    while host.lock().asked < 127 * 65536 {
        tokio::task::yield_now().await;
    }
    host.lock().error = Some(DeviceError::new(ErrorKind::Gone, "Away"));
    for number in 64..90 {
        assert_eq!(read(&queue, number * 65536, 65536).await.unwrap(), content(number * 65536, 65536));
    }
    let error = read(&queue, SIZE - 65536, 65536).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Gone, "what is not here fails as the host says");
    let error = read(&queue, 90 * 65536, 65536).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Gone, "once that is known, so does what was here");
    host.lock().error = None;
    assert!(read(&queue, SIZE - 65536, 65536).await.is_ok());
}

#[tokio::test]
async fn a_place_that_cannot_be_read_fails_alone_and_changes_are_refused() {
    let host = Arc::new(Host::default());
    host.lock().bad = Some(40960);
    let queue = reading_ahead(Queue::new(Arc::clone(&host) as _), SIZE);
    assert_eq!(read(&queue, 0, 40960).await.unwrap(), content(0, 40960));
    assert_eq!(read(&queue, 40960, 2048).await.unwrap_err().kind, ErrorKind::Io);
    assert_eq!(read(&queue, 43008, 22528).await.unwrap(), content(43008, 22528));
    assert_eq!(read(&queue, SIZE - 2048, 4096).await.unwrap_err().kind, ErrorKind::OutOfRange);
    assert_eq!(queue.call(BlockRequest::Flush.into_request()).await.unwrap_err().kind, ErrorKind::ReadOnly);
}

async fn read(queue: &Queue, offset: u64, length: u32) -> Completion {
    queue.call(OpticalRequest::Read { offset, length }.into_request()).await
}

/// Answers at once.
#[derive(Default)]
struct Host(Mutex<Says>);

#[derive(Default)]
struct Says {
    asked: u64,
    error: Option<DeviceError>,
    bad: Option<u64>,
}

impl Host {
    fn lock(&self) -> MutexGuard<'_, Says> {
        self.0.lock().unwrap()
    }
}

impl Accept for Host {
    fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        let OpticalRequest::Read { offset, length } = OpticalRequest::parse(&request).unwrap() else { unreachable!() };
        let mut says = self.lock();
        let completion = match (&says.error, says.bad) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(bad)) if (offset..offset + u64::from(length)).contains(&bad) => {
                Err(DeviceError::new(ErrorKind::Io, "Scratched"))
            }
            (None, _) => Ok(content(offset, length)),
        };
        says.asked += u64::from(length);
        drop(says);
        answer(completion, None);
        Box::pin(async {})
    }

    fn accept_blocking(self: Arc<Self>, _request: Request, _entry: Entry, _answer: Answer) {
        unreachable!("reading ahead is done by tasks");
    }
}

fn content(offset: u64, length: u32) -> Bytes {
    (offset..offset + u64::from(length)).step_by(8).flat_map(u64::to_be_bytes).collect()
}
