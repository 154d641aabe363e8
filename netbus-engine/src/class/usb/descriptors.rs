//! What a device says of its configurations, as far as Netbus needs it (USB 2.0, chapter 9.6).

use netbus_proto::class::usb::{Kind, MAX_ENDPOINTS};

const CONFIGURATION: u8 = 2;
const INTERFACE: u8 = 4;
const ENDPOINT: u8 = 5;

/// The configurations of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    configurations: Vec<Configuration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Configuration {
    value: u8,
    settings: Vec<Setting>,
}

/// An alternate setting of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    interface: u8,
    alternate: u8,
    class: [u8; 3],
    /// Addresses with their kinds.
    endpoints: Vec<(u8, Kind)>,
}

impl Layout {
    /// Reads descriptors one behind the other, as sysfs has them: that of the device, then those of each configuration.
    /// What makes no sense is left out, and all behind it.
    pub(super) fn parse(mut bytes: &[u8]) -> Self {
        let mut layout = Self::default();
        while let [length, kind, ..] = bytes
            && *length >= 2
            && let Some((descriptor, rest)) = bytes.split_at_checked(usize::from(*length))
        {
            layout.add(*kind, descriptor);
            bytes = rest;
        }
        layout
    }

    fn add(&mut self, kind: u8, descriptor: &[u8]) {
        if let (CONFIGURATION, [_, _, _, _, _, value, ..]) = (kind, descriptor) {
            self.configurations.push(Configuration { value: *value, settings: Vec::new() });
            return;
        }
        let Some(configuration) = self.configurations.last_mut() else { return };
        match (kind, descriptor) {
            (INTERFACE, [_, _, interface, alternate, _, class, subclass, protocol, ..]) => {
                let class = [*class, *subclass, *protocol];
                let (interface, alternate, endpoints) = (*interface, *alternate, Vec::new());
                configuration.settings.push(Setting { interface, alternate, class, endpoints });
            }
            (ENDPOINT, [_, _, address, attributes, ..]) => {
                if let Some(setting) = configuration.settings.last_mut() {
                    setting.endpoints.push((*address, Kind::ALL[usize::from(*attributes & 3)]));
                }
            }
            _ => {}
        }
    }

    /// The numbers of the interfaces of a configuration, sorted.
    pub(super) fn interfaces(&self, configuration: u8) -> Vec<u8> {
        let mut interfaces: Vec<_> = self.settings(configuration).map(|setting| setting.interface).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        interfaces
    }

    /// Class, subclass and protocol of each interface of a configuration, in its first alternate setting.
    pub(super) fn classes(&self, configuration: u8) -> Vec<[u8; 3]> {
        let settings = self.settings(configuration).filter(|setting| setting.alternate == 0);
        settings.map(|setting| setting.class).collect()
    }

    /// The addresses of the endpoints of an interface, in all its alternate settings.
    pub(super) fn endpoints_of(&self, configuration: u8, interface: u8) -> Vec<u8> {
        let settings = self.settings(configuration).filter(|setting| setting.interface == interface);
        settings.flat_map(|setting| setting.endpoints.iter().map(|(address, _)| *address)).collect()
    }

    /// Address and kind of each endpoint, in all configurations and settings without repetition, as a description has
    /// them.
    pub(super) fn endpoints(&self) -> Vec<u8> {
        let settings = self.configurations.iter().flat_map(|configuration| &configuration.settings);
        let mut pairs: Vec<[u8; 2]> = Vec::new();
        for (address, kind) in settings.flat_map(|setting| &setting.endpoints) {
            let pair = [*address, *kind as u8];
            if !pairs.contains(&pair) && pairs.len() < MAX_ENDPOINTS {
                pairs.push(pair);
            }
        }
        pairs.concat()
    }

    fn settings(&self, configuration: u8) -> impl Iterator<Item = &Setting> {
        let meant = self.configurations.iter().filter(move |known| known.value == configuration);
        meant.flat_map(|configuration| &configuration.settings)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A disk with one interface.
    pub(in crate::class::usb) const DISK: &[u8] = &[
        18, 1, 0, 2, 0, 0, 0, 64, 0xac, 5, 9, 0x12, 1, 0, 1, 2, 3, 1, // device
        9, 2, 32, 0, 1, 1, 0, 0xc0, 1, // configuration 1
        9, 4, 0, 0, 2, 8, 6, 80, 0, // interface 0: storage
        7, 5, 0x81, 2, 0, 2, 0, // bulk in
        7, 5, 0x02, 2, 0, 2, 0, // bulk out
    ];

    #[test]
    fn a_disk_has_its_interface_and_endpoints() {
        let layout = Layout::parse(DISK);
        assert_eq!(layout.interfaces(1), [0]);
        assert_eq!(layout.classes(1), [[8, 6, 80]]);
        assert_eq!(layout.endpoints(), [0x81, 2, 0x02, 2]);
        assert!(layout.interfaces(2).is_empty());
    }

    #[test]
    fn alternate_settings_are_of_one_interface() {
        let mut bytes = DISK.to_vec();
        // Sound: nothing in setting 0, an isochronous endpoint in setting 1, with a descriptor of its class between.
        bytes.extend([9, 4, 1, 0, 0, 1, 2, 0, 0, 9, 4, 1, 1, 1, 1, 2, 0, 0, 4, 0x24, 1, 2, 7, 5, 0x83, 5, 0, 1, 1]);
        let layout = Layout::parse(&bytes);
        assert_eq!(layout.interfaces(1), [0, 1]);
        assert_eq!(layout.classes(1), [[8, 6, 80], [1, 2, 0]]);
        assert_eq!(layout.endpoints_of(1, 1), [0x83]);
        assert_eq!(layout.endpoints(), [0x81, 2, 0x02, 2, 0x83, 1]);
    }

    #[test]
    fn nonsense_ends_it() {
        for (at, byte) in [(0, 0), (18, 1), (27, 0), (36, 200)] {
            let mut bytes = DISK.to_vec();
            bytes[at] = byte;
            Layout::parse(&bytes);
            Layout::parse(&bytes[..at]);
        }
        assert_eq!(Layout::parse(&[]), Layout::default());
    }
}
