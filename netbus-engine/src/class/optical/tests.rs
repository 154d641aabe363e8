#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;

use netbus_proto::class::optical::Kind;

use super::*;
use crate::backend::Ticket;

#[test]
fn an_image_of_a_disc_is_known_by_what_is_in_it_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("holiday.bin");
    std::fs::write(&image, disc(b"HOLIDAY")).unwrap();
    let class = OpticalClass::new();
    let identified = class.identify(image.to_str().unwrap(), false).unwrap();
    assert!(identified.read_only);
    assert_eq!((identified.suggested_name.as_str(), identified.identity.class.as_str()), ("holiday", "optical"));
    assert_eq!(class.describe(&identified.device), "a data disc \"HOLIDAY\", 80.0 KiB");
    assert_eq!(class.size(&identified.device), Some(40 * 2048));
    let opened = class.open(&identified.identity, true).unwrap();
    assert_eq!(opened.device, identified.device);
    let (answer, answered) = std::sync::mpsc::channel();
    let request = OpticalRequest::Read { offset: 16 * 2048, length: 2048 }.into_request();
    class.check(&opened.device, true, &request).unwrap();
    let ticket = Ticket::new(netbus_proto::ids::Epoch(1), netbus_proto::ids::Tag(1), request, move |_, _, data| {
        drop(answer.send(data));
    });
    opened.backend.submit(ticket);
    assert_eq!(answered.recv().unwrap().unwrap()[..], disc(b"HOLIDAY")[16 * 2048..17 * 2048]);
    let known = [identified.identity];
    let listed = class.scan(&known);
    let listed = listed.iter().find(|device| device.name == "holiday.bin").unwrap();
    assert_eq!(listed.kind.as_deref(), Some("a data disc \"HOLIDAY\", 80.0 KiB"));
}

#[test]
fn another_disc_is_another_instance_and_the_same_one_in_another_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let class = OpticalClass::new();
    let instance = |name: &str, content: &[u8]| {
        let image = folder.path().join(name);
        std::fs::write(&image, content).unwrap();
        let identity = class.identify(image.to_str().unwrap(), true).unwrap().identity;
        class.open(&identity, true).unwrap().instance
    };
    let one = instance("one.iso", &disc(b"ONE"));
    assert_eq!(instance("copy.iso", &disc(b"ONE")), one);
    assert_ne!(instance("two.iso", &disc(b"TWO")), one);
}

#[test]
fn what_is_no_image_of_a_disc_is_left_to_the_block_class() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.iso");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    for name in [image.to_str().unwrap(), "sda", "/nowhere/at-all"] {
        assert!(matches!(OpticalClass::new().identify(name, true), Err(OpenError::Absent(_))), "{name}");
    }
}

#[test]
fn an_image_that_has_become_something_else_is_not_lent() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disc.iso");
    std::fs::write(&image, disc(b"DISC")).unwrap();
    let class = OpticalClass::new();
    let identity = class.identify(image.to_str().unwrap(), true).unwrap().identity;
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().write_all_at(&[0; 2048], 16 * 2048).unwrap();
    assert!(matches!(class.open(&identity, true), Err(OpenError::Unfit(_))));
    assert!(class.locate(&identity).is_err());
}

#[test]
fn a_disc_is_described_in_a_few_words() {
    let describe = |kind, label: &str, size, capabilities| {
        let device = Description {
            vendor: String::new(),
            model: String::new(),
            serial: String::new(),
            capabilities,
            kind,
            label: label.to_owned(),
            size,
            sector_size: if size == 0 { 0 } else { 2048 },
            changes: 0,
        };
        OpticalClass::new().describe(&minicbor::to_vec(device).unwrap().into())
    };
    let writes = Capabilities::WRITES_DVD;
    assert_eq!(describe(Kind::DvdVideo, "FILM", 4 << 30, Capabilities::default()), "a video DVD \"FILM\", 4.0 GiB");
    assert_eq!(describe(Kind::None, "", 0, writes), "no disc, in a drive that writes");
    assert_eq!(OpticalClass::new().describe(&Bytes::from_static(b"?")), "The device description is malformed");
}

/// A disc of 40 sectors with a name and nothing else.
fn disc(label: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 40 * 2048];
    image[16 * 2048..16 * 2048 + 7].copy_from_slice(b"\x01CD001\x01");
    image[16 * 2048 + 40..16 * 2048 + 40 + label.len()].copy_from_slice(label);
    image[17 * 2048..17 * 2048 + 6].copy_from_slice(b"\xffCD001");
    image
}
