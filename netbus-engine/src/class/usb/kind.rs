//! What people call a device: `music player`, `webcam`. Made of what it says of itself, so that both ends say the same.

use netbus_proto::class::usb::{Description, Speed};

const APPLE: u16 = 0x05ac;
const YUBICO: u16 = 0x1050;

/// Words in the names of music players and telephones, whose interfaces are those of a disk or a camera.
const PLAYERS: [&str; 5] = ["ipod", "walkman", "mp3", "music player", "sansa"];

const PHONES: [&str; 5] = ["phone", "android", "pixel", "galaxy", "ipad"];

/// The first of these that a device has an interface of is its kind: class, subclass and protocol, of which the last two
/// may be any (`None`). A printer with a scanner is a printer, a webcam with a microphone a webcam.
const INTERFACES: [(u8, Option<u8>, Option<u8>, &str); 17] = [
    (0x07, None, None, "printer"),
    (0x0e, None, None, "webcam"),
    (0x0b, None, None, "security token"),
    (0x06, None, None, "camera"),
    (0x08, Some(2), None, "optical drive"),
    (0x08, Some(5), None, "optical drive"),
    (0x08, Some(4), None, "floppy drive"),
    (0x08, None, None, "flash disk"),
    (0x10, None, None, "audio"),
    (0x01, None, None, "audio"),
    (0xe0, Some(1), Some(1), "Bluetooth adapter"),
    (0x02, Some(2), None, "serial port"),
    (0x02, None, None, "network adapter"),
    (0xe0, Some(1), Some(3), "network adapter"),
    (0x03, Some(1), Some(1), "keyboard"),
    (0x03, Some(1), Some(2), "mouse"),
    (0x03, None, None, "input device"),
];

/// What a device is, in a word or two.
pub(super) fn kind(device: &Description) -> &'static str {
    let name = device.name.to_lowercase();
    let is_named = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if device.vendor == APPLE
        && let Some(kind) = apple(device.product)
    {
        return kind;
    }
    // Some tokens show themselves as keyboards only.
    if device.vendor == YUBICO {
        return "security token";
    }
    let interfaces = || device.interfaces.as_chunks::<3>().0.iter();
    let carries_files = interfaces().any(|class| matches!(class[0], 0x06 | 0x08 | 0xff));
    if carries_files && is_named(&PLAYERS) {
        return "music player";
    }
    if carries_files && is_named(&PHONES) {
        return "phone";
    }
    let known = INTERFACES.into_iter().find(|(class, subclass, protocol, _)| {
        interfaces().any(|[is, sub, proto]| {
            is == class
                && subclass.is_none_or(|wanted| wanted == *sub)
                && protocol.is_none_or(|wanted| wanted == *proto)
        })
    });
    known.map_or("other", |(.., kind)| kind)
}

/// Apple's numbers: iPods, some of which are neither disk nor camera, and telephones.
fn apple(product: u16) -> Option<&'static str> {
    match product {
        0x1200..=0x126f | 0x1291 | 0x1293 | 0x1299 | 0x129e | 0x12aa => Some("music player"),
        0x1290..=0x12af => Some("phone"),
        _ => None,
    }
}

/// Whether it is a keyboard or a mouse and nothing else, which the machine itself is used with.
pub(super) fn is_for_this_machine(device: &Description) -> bool {
    let interfaces = device.interfaces.as_chunks::<3>().0;
    let boots = interfaces.iter().any(|class| matches!(class, [3, 1, 1 | 2]));
    boots && interfaces.iter().all(|class| class[0] == 3) && matches!(kind(device), "keyboard" | "mouse")
}

/// A few words on a device: `music player, high speed, 05ac:1209`.
pub(super) fn describe(device: &Description) -> String {
    let speed = match device.speed {
        Speed::Low => "low speed",
        Speed::Full => "full speed",
        Speed::High => "high speed",
        Speed::Super => "super speed",
        Speed::SuperPlus => "super speed plus",
    };
    format!("{}, {speed}, {:04x}:{:04x}", kind(device), device.vendor, device.product)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_called_what_people_call_them() {
        for (vendor, product, name, interfaces, expected) in [
            (APPLE, 0x1209, "Apple iPod", &[[8, 6, 80]][..], "music player"),
            (APPLE, 0x12a8, "iPhone", &[[6, 1, 1], [255, 254, 2]], "phone"),
            (0x054c, 0x0385, "Sony WALKMAN", &[[6, 1, 1]], "music player"),
            (0x18d1, 0x4ee1, "Google Pixel 8", &[[6, 1, 1]], "phone"),
            (0x04a9, 0x31bf, "Canon PowerShot", &[[6, 1, 1]], "camera"),
            (0x0781, 0x5567, "SanDisk Ultra", &[[8, 6, 80]], "flash disk"),
            (0x152e, 0x2571, "HL-DT-ST DVD", &[[8, 2, 80]], "optical drive"),
            (0x046d, 0x0825, "Webcam", &[[1, 1, 0], [1, 2, 0], [14, 1, 0], [14, 2, 0]], "webcam"),
            (0x0d8c, 0x0014, "USB Audio", &[[1, 1, 0], [1, 2, 0], [3, 0, 0]], "audio"),
            (0x03f0, 0x1111, "LaserJet", &[[255, 1, 1], [7, 1, 2], [8, 6, 80]], "printer"),
            (YUBICO, 0x0402, "YubiKey", &[[3, 1, 1]], "security token"),
            (0x046d, 0xc31c, "Keyboard", &[[3, 1, 1], [3, 0, 0]], "keyboard"),
            (0x046d, 0xc077, "Mouse", &[[3, 1, 2]], "mouse"),
            (0x1234, 0x5678, "Thing", &[[255, 0, 0]], "other"),
            (0x1234, 0x5678, "Thing", &[], "other"),
        ] {
            assert_eq!(kind(&device(vendor, product, name, interfaces)), expected, "{name}");
        }
    }

    #[test]
    fn only_keyboards_and_mice_are_the_machines_own() {
        assert!(is_for_this_machine(&device(0x046d, 0xc31c, "Keyboard", &[[3, 1, 1], [3, 0, 0]])));
        assert!(!is_for_this_machine(&device(YUBICO, 0x0402, "YubiKey", &[[3, 1, 1]])));
        assert!(!is_for_this_machine(&device(0x0d8c, 0x0014, "USB Audio", &[[1, 1, 0], [3, 1, 1]])));
        assert!(!is_for_this_machine(&device(0x1234, 0x5678, "Joystick", &[[3, 0, 0]])));
    }

    #[test]
    fn a_description_is_short() {
        let player = device(APPLE, 0x1209, "Apple iPod", &[[8, 6, 80]]);
        assert_eq!(describe(&player), "music player, high speed, 05ac:1209");
    }

    fn device(vendor: u16, product: u16, name: &str, interfaces: &[[u8; 3]]) -> Description {
        Description {
            speed: Speed::High,
            vendor,
            product,
            release: 0x0100,
            class: [0; 3],
            configurations: 1,
            configuration: 1,
            name: name.to_owned(),
            interfaces: interfaces.concat(),
            endpoints: Vec::new(),
        }
    }
}
