//! A transfer as the kernel asks for it, made into one of Netbus. Pure.

use bytes::{Bytes, BytesMut};
use netbus_proto::class::usb::{Description, IN, Kind, MAX_PACKETS, MAX_TRANSFER, Place, Transfer};

use super::pdu::{self, Errno, Submit};

/// What the kernel asks for, as one transfer of Netbus. `places` is the list of packets, `data` the whole buffer towards the
/// device. The transfer has no number yet.
///
/// # Errors
/// What the kernel is answered with: [`Errno::MSGSIZE`] for what is too long, [`Errno::INVAL`] for what fits neither the
/// device nor itself.
pub(super) fn translate(
    submit: &Submit,
    places: &[pdu::Place],
    data: &Bytes,
    device: &Description,
) -> Result<Transfer, Errno> {
    if submit.length > MAX_TRANSFER || submit.packets > MAX_PACKETS {
        return Err(Errno::MSGSIZE);
    }
    let endpoint = if submit.is_in { submit.endpoint | IN } else { submit.endpoint };
    let kind = kind_of(submit, endpoint, device).ok_or(Errno::INVAL)?;
    let packets: Vec<u32> = places.iter().map(|place| place.length).collect();
    let length = if kind == Kind::Isochronous { total(places, submit.length)? } else { submit.length };
    let transfer = Transfer {
        place: Place { number: 1, acknowledged: 0 },
        endpoint,
        kind,
        // As on the kernel's own controllers, where these mean nothing for other transfers.
        short_not_ok: submit.short_not_ok && submit.is_in && kind != Kind::Isochronous,
        zero_packet: submit.zero_packet && !submit.is_in && kind == Kind::Bulk,
        length,
        setup: if kind == Kind::Control { submit.setup } else { [0; 8] },
        data: if kind == Kind::Isochronous && !submit.is_in { gather(places, data)? } else { data.clone() },
        packets,
    };
    Ok(transfer)
}

/// Whether the kernel begins with a device, or begins anew: the first thing that it asks of one whose port it has reset is
/// the beginning of the device descriptor, of which it then knows the size of packets. It asks for that at no other time. The
/// virtual controller tells nothing else of a port's reset.
pub(super) fn is_first_of_all(transfer: &Transfer) -> bool {
    transfer.kind == Kind::Control && matches!(transfer.setup, [0x80, 6, 0, 1, 0, 0, 8 | 64, 0])
}

/// What the transfer is. An endpoint may be of one kind in one alternate setting and of another in the next.
fn kind_of(submit: &Submit, endpoint: u8, device: &Description) -> Option<Kind> {
    let kinds: &[Kind] = match (submit.endpoint, submit.packets, submit.interval) {
        (0, 0, _) => &[Kind::Control],
        (0, _, _) => &[],
        (_, 0, 0) => &[Kind::Bulk, Kind::Interrupt],
        (_, 0, _) => &[Kind::Interrupt, Kind::Bulk],
        (_, _, _) => &[Kind::Isochronous],
    };
    kinds.iter().copied().find(|kind| device.has(endpoint, *kind))
}

/// The length of all packets. Each lies within the buffer, and together they are not longer: the kernel lays what comes
/// from the device into it, one behind the other, before it brings each to its place.
fn total(places: &[pdu::Place], buffer: u32) -> Result<u32, Errno> {
    let mut total = 0_u32;
    for place in places {
        let end = place.offset.checked_add(place.length).ok_or(Errno::INVAL)?;
        total = total.checked_add(place.length).ok_or(Errno::INVAL)?;
        if end > buffer || total > buffer {
            return Err(Errno::INVAL);
        }
    }
    Ok(total)
}

/// The bytes of the packets, one behind the other.
fn gather(places: &[pdu::Place], data: &Bytes) -> Result<Bytes, Errno> {
    let mut follows = 0;
    let is_gapless = places.iter().all(|place| {
        let before = std::mem::replace(&mut follows, place.offset.saturating_add(place.length));
        before == place.offset
    });
    if is_gapless {
        // As nearly every driver has it.
        let whole = follows as usize <= data.len();
        return whole.then(|| data.slice(..follows as usize)).ok_or(Errno::INVAL);
    }
    let mut gathered = BytesMut::with_capacity(data.len());
    for place in places {
        let start = place.offset as usize;
        let packet = data.get(start..start.saturating_add(place.length as usize)).ok_or(Errno::INVAL)?;
        gathered.extend_from_slice(packet);
    }
    Ok(gathered.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use netbus_proto::class::usb::{Speed, UsbRequest};

    use super::*;

    #[test]
    fn the_kind_is_that_of_the_endpoint() {
        let kind = |endpoint, is_in, interval| {
            let submit = Submit { endpoint, is_in, interval, ..submit() };
            let data = if is_in { Bytes::new() } else { Bytes::from_static(&[0; 8]) };
            translate(&submit, &[], &data, &device()).map(|transfer| transfer.kind)
        };
        assert_eq!(kind(1, true, 0), Ok(Kind::Bulk));
        assert_eq!(kind(2, false, 0), Ok(Kind::Bulk));
        assert_eq!(kind(3, true, 8), Ok(Kind::Interrupt));
        // Of both kinds: only transfers of one of them have an interval.
        assert_eq!(kind(5, true, 0), Ok(Kind::Bulk));
        assert_eq!(kind(5, true, 8), Ok(Kind::Interrupt));
        for (endpoint, is_in) in [(1, false), (2, true), (4, true), (9, true), (15, false)] {
            assert_eq!(kind(endpoint, is_in, 0), Err(Errno::INVAL), "{endpoint} {is_in}");
        }
    }

    #[test]
    fn flags_mean_something_where_they_do_on_other_controllers() {
        let flags = |endpoint, is_in| {
            let submit = Submit { endpoint, is_in, short_not_ok: true, zero_packet: true, ..submit() };
            let data = if is_in { Bytes::new() } else { Bytes::from_static(&[0; 8]) };
            let transfer = translate(&submit, &[], &data, &device()).unwrap();
            (transfer.short_not_ok, transfer.zero_packet)
        };
        assert_eq!(flags(1, true), (true, false));
        assert_eq!(flags(2, false), (false, true));
    }

    #[test]
    fn what_is_too_long_is_refused_as_such() {
        let refused = |length, packets| {
            let submit = Submit { length, packets, ..submit() };
            translate(&submit, &[], &Bytes::new(), &device()).unwrap_err()
        };
        assert_eq!(refused(MAX_TRANSFER + 1, 0), Errno::MSGSIZE);
        assert_eq!(refused(8, MAX_PACKETS + 1), Errno::MSGSIZE);
    }

    #[test]
    fn packets_are_gathered_from_wherever_they_lie() {
        let submit = Submit { endpoint: 4, is_in: false, length: 16, packets: 2, ..submit() };
        let data = Bytes::from_static(b"0123456789abcdef");
        let place = |offset, length| pdu::Place { offset, length };
        let gathered = |places: &[pdu::Place]| translate(&submit, places, &data, &device());
        let transfer = gathered(&[place(0, 4), place(4, 2)]).unwrap();
        assert_eq!((transfer.kind, transfer.length, &transfer.data[..]), (Kind::Isochronous, 6, &b"012345"[..]));
        assert_eq!(transfer.packets, [4, 2]);
        assert_eq!(&gathered(&[place(8, 4), place(0, 2)]).unwrap().data[..], b"89ab01");
        for bad in [
            [place(0, 4), place(16, 1)],
            [place(0, 4), place(u32::MAX, 1)],
            [place(0, 4), place(4, u32::MAX)],
            // Each fits, but not all.
            [place(0, 16), place(0, 1)],
        ] {
            assert_eq!(gathered(&bad).unwrap_err(), Errno::INVAL, "{bad:?}");
        }
    }

    #[test]
    fn what_is_made_is_what_a_host_takes() {
        let place = |offset, length| pdu::Place { offset, length };
        let setup = [0x80, 6, 0, 1, 0, 0, 8, 0];
        let data = Bytes::from_static(b"01234567");
        let none = Bytes::new();
        for (submit, places, data) in [
            (Submit { endpoint: 0, setup, ..submit() }, &[][..], &none),
            (Submit { endpoint: 0, is_in: false, length: 0, setup: [0, 9, 1, 0, 0, 0, 0, 0], ..submit() }, &[], &none),
            (submit(), &[], &none),
            // A driver may have left something where bulk transfers have no setup packet.
            (Submit { setup, ..submit() }, &[], &none),
            (Submit { endpoint: 2, is_in: false, ..submit() }, &[], &data),
            (Submit { endpoint: 4, is_in: false, packets: 2, ..submit() }, &[place(0, 3), place(4, 3)], &data),
            (Submit { endpoint: 6, packets: 2, ..submit() }, &[place(0, 3), place(4, 3)], &none),
        ] {
            let transfer = translate(&submit, places, data, &device()).unwrap();
            let request = UsbRequest::Transfer(transfer).into_request();
            UsbRequest::parse(&request).unwrap().check(&device()).unwrap();
        }
    }

    fn submit() -> Submit {
        Submit {
            seqnum: 1,
            is_in: true,
            endpoint: 1,
            short_not_ok: false,
            zero_packet: false,
            length: 8,
            start_frame: 0,
            packets: 0,
            interval: 0,
            setup: [0; 8],
        }
    }

    fn device() -> Description {
        let endpoints = [
            (0x81, Kind::Bulk),
            (0x02, Kind::Bulk),
            (0x83, Kind::Interrupt),
            (0x04, Kind::Isochronous),
            (0x85, Kind::Bulk),
            (0x85, Kind::Interrupt),
            (0x86, Kind::Isochronous),
        ];
        Description {
            speed: Speed::High,
            vendor: 1,
            product: 2,
            release: 0,
            class: [0; 3],
            configurations: 1,
            configuration: 1,
            name: String::new(),
            interfaces: Vec::new(),
            endpoints: endpoints.iter().flat_map(|(address, kind)| [*address, *kind as u8]).collect(),
        }
    }
}
