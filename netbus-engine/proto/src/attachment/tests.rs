#![allow(clippy::unwrap_used)]

use std::ops::Range;

use bytes::Bytes;

use super::*;

#[test]
fn a_lost_write_is_replayed_once_and_the_stale_answer_dropped() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let tag = accept(&mut attachment, Access::Change, 0..1);
    assert_eq!(attachment.poll_dispatch().unwrap().epoch, Epoch(1));

    attachment.handle_link_lost(Epoch(1), now);
    attachment.bind(binding(2)).unwrap();
    let again = attachment.poll_dispatch().unwrap();
    assert_eq!((again.epoch, again.tag), (Epoch(2), tag));

    attachment.handle_completion(Epoch(1), tag, ok(), now);
    assert_eq!(attachment.poll_answer(), None);
    attachment.handle_completion(Epoch(2), tag, ok(), now);
    attachment.handle_completion(Epoch(2), tag, ok(), now);
    assert_eq!(attachment.poll_answer(), Some((tag, ok())));
    assert_eq!(attachment.poll_answer(), None);
}

fn active(policy: Policy, now: Instant) -> Attachment {
    let mut attachment = Attachment::new(policy, now);
    attachment.bind(binding(1)).unwrap();
    attachment
}

fn replaying() -> Policy {
    Policy { replay: true, park_for: Some(Duration::from_secs(5)), max_requests: 8, max_bytes: 100 }
}

fn binding(epoch: u64) -> Binding {
    Binding {
        epoch: Epoch(epoch),
        generation: Generation(1),
        instance: Instance([1; 16]),
        write_through: false,
        max_requests: 4,
        max_bytes: 50,
    }
}

fn accept(attachment: &mut Attachment, access: Access, extent: Range<u64>) -> Tag {
    let (request, shape) = request(access, extent);
    attachment.handle_request(request, shape).unwrap()
}

fn request(access: Access, extent: Range<u64>) -> (Request, Shape) {
    let bytes = usize::try_from(extent.end - extent.start).unwrap();
    let extent = (access != Access::Flush).then_some(extent);
    (Request { op: 1, args: Bytes::new(), data: Bytes::new() }, Shape { access, extent, bytes })
}

fn ok() -> Completion {
    Ok(Bytes::new())
}
