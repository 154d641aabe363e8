#![allow(clippy::unwrap_used)]

use super::*;

const SIZE: usize = 600;

#[test]
fn a_disc_with_files_is_data_and_has_its_name() {
    let image = iso("HOLIDAY 2026", &["PHOTOS", "README"]);
    assert_eq!(look(&image), Some(Volume { kind: Kind::Data, label: "HOLIDAY 2026".to_owned() }));
    let joliet = with_joliet(iso("", &[]), "Größe");
    assert_eq!(look(&joliet).unwrap().label, "Größe");
}

#[test]
fn discs_with_films_are_known_by_their_folders() {
    assert_eq!(look(&iso("FILM", &["AUDIO_TS", "VIDEO_TS"])).unwrap().kind, Kind::DvdVideo);
    assert_eq!(look(&udf("Blue", "BDMV", false)), Some(Volume { kind: Kind::BluRay, label: "Blue".to_owned() }));
    assert_eq!(look(&udf("Blue", "BDMV", true)), Some(Volume { kind: Kind::BluRay, label: "Blue".to_owned() }));
    assert_eq!(look(&udf("DVD", "VIDEO_TS", false)).unwrap().kind, Kind::DvdVideo);
    assert_eq!(look(&udf("Files", "Photos", false)).unwrap().kind, Kind::Data);
}

#[test]
fn what_is_no_disc_is_none() {
    assert_eq!(look(&[]), None);
    assert_eq!(look(&vec![0; SIZE * 2048]), None);
    assert_eq!(look(&vec![0xff; SIZE * 2048]), None);
    assert_eq!(look(&iso("SHORT", &[])[..20 * 2048]).unwrap().label, "SHORT", "its folders are not there");
}

#[test]
fn a_name_is_bounded_and_has_nothing_but_characters() {
    let image = iso("A\x1b[31mRED\n", &[]);
    assert_eq!(look(&image).unwrap().label, "A[31mRED");
    let long = with_joliet(iso("", &[]), &"𝄞".repeat(100));
    assert!(look(&long).unwrap().label.len() <= MAX_WORDS);
}

/// Every number that a hostile disc may lie about is made the worst that there is, and then anything: looking ends, within
/// bounds, without a panic.
#[test]
fn a_hostile_disc_is_looked_at_within_bounds() {
    let mut random = Random(0x6e62_7573);
    for image in [iso("FILM", &["VIDEO_TS"]), udf("Blue", "BDMV", false), udf("Blue", "BDMV", true)] {
        let interesting: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
        for at in &interesting {
            for worst in [0, 1, 0x7f, 0x80, 0xff] {
                let mut image = image.clone();
                image[*at] = worst;
                look(&image);
                // Of a number of four bytes, all.
                let end = (at + 4).min(image.len());
                image[*at..end].fill(worst);
                look(&image);
            }
        }
        for _ in 0..2000 {
            let mut image = image.clone();
            for _ in 0..random.below(12) + 1 {
                let at = interesting[random.below(interesting.len())] + random.below(8);
                if let Some(byte) = image.get_mut(at) {
                    *byte = u8::try_from(random.below(256)).unwrap();
                }
            }
            look(&image);
        }
    }
}

/// Looks at an image, and sees that no more is read than may be.
fn look(image: &[u8]) -> Option<Volume> {
    let mut read = 0;
    survey(|range| {
        read += range.end - range.start;
        assert!(read <= BUDGET * 2048, "{read} bytes were read");
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        image.get(start..end).map(Bytes::copy_from_slice)
    })
}

/// An ISO 9660 file system with these folders.
fn iso(label: &str, folders: &[&str]) -> Vec<u8> {
    let mut image = vec![0; SIZE * 2048];
    let primary = &mut image[16 * 2048..17 * 2048];
    primary[..7].copy_from_slice(b"\x01CD001\x01");
    primary[40..72].fill(b' ');
    primary[40..40 + label.len()].copy_from_slice(label.as_bytes());
    primary[156..190].copy_from_slice(&record(b"\0", 20));
    image[17 * 2048..17 * 2048 + 7].copy_from_slice(b"\xffCD001\x01");
    let mut at = 20 * 2048;
    for name in [b"\0".as_slice(), b"\x01"].into_iter().chain(folders.iter().map(|name| name.as_bytes())) {
        let record = record(name, 30);
        image[at..at + record.len()].copy_from_slice(&record);
        at += record.len();
    }
    image
}

fn record(name: &[u8], at: u32) -> Vec<u8> {
    let mut record = vec![0; (33 + name.len()).next_multiple_of(2)];
    record[0] = u8::try_from(record.len()).unwrap();
    record[2..6].copy_from_slice(&at.to_le_bytes());
    record[10..14].copy_from_slice(&2048_u32.to_le_bytes());
    record[25] = 2;
    record[32] = u8::try_from(name.len()).unwrap();
    record[33..33 + name.len()].copy_from_slice(name);
    record
}

fn with_joliet(mut image: Vec<u8>, label: &str) -> Vec<u8> {
    let terminator = image[17 * 2048..18 * 2048].to_vec();
    image[18 * 2048..19 * 2048].copy_from_slice(&terminator);
    let descriptor = &mut image[17 * 2048..18 * 2048];
    descriptor[0] = 2;
    descriptor[88..91].copy_from_slice(b"%/E");
    let units = label.encode_utf16().take(16).flat_map(u16::to_be_bytes);
    descriptor[40..72].iter_mut().zip(units).for_each(|(byte, unit)| *byte = unit);
    image
}

/// A UDF file system with one folder; with metadata of its own as Blu-ray discs have it, or without.
fn udf(label: &str, folder: &str, metadata: bool) -> Vec<u8> {
    let mut image = vec![0; SIZE * 2048];
    let start = 270;
    let base = if metadata { start + 10 } else { start };
    let mut put = |sector: usize, fields: &[(usize, &[u8])]| {
        for (at, bytes) in fields {
            image[sector * 2048 + at..sector * 2048 + at + bytes.len()].copy_from_slice(bytes);
        }
    };
    put(256, &[(0, &[2, 0]), (16, &(16 * 2048_u32).to_le_bytes()), (20, &260_u32.to_le_bytes())]);
    put(260, &[(0, &[5, 0]), (188, &u32::try_from(start).unwrap().to_le_bytes())]);
    let name = [&[8], label.as_bytes()].concat();
    put(261, &[(0, &[6, 0]), (84, &name), (211, &[u8::try_from(name.len()).unwrap()])]);
    if metadata {
        put(261, &[(256, &[1, 0]), (440, &[1, 6]), (446, &[2, 64]), (451, METADATA), (486, &5_u32.to_le_bytes())]);
        // The file that is the metadata: its first part is 10 blocks on.
        let parts = [(16 * 2048_u32).to_le_bytes(), 10_u32.to_le_bytes()].concat();
        put(start + 5, &[(0, &266_u16.to_le_bytes()), (212, &8_u32.to_le_bytes()), (216, &parts)]);
    }
    put(262, &[(0, &[8, 0])]);
    put(base, &[(0, &256_u16.to_le_bytes()), (404, &1_u32.to_le_bytes())]);
    let name = [&[8], folder.as_bytes()].concat();
    let mut names = vec![0; 40];
    names[..2].copy_from_slice(&257_u16.to_le_bytes());
    // The folder above, which has no name.
    names[18] = 0x0a;
    let mut entry = vec![0; (38 + name.len()).next_multiple_of(4)];
    entry[..2].copy_from_slice(&257_u16.to_le_bytes());
    entry[18] = 2;
    entry[19] = u8::try_from(name.len()).unwrap();
    entry[38..38 + name.len()].copy_from_slice(&name);
    names.extend(entry);
    let length = u32::try_from(names.len()).unwrap().to_le_bytes();
    put(base + 1, &[(0, &261_u16.to_le_bytes()), (34, &[3]), (172, &length), (176, &names)]);
    image
}

const METADATA: &[u8] = b"*UDF Metadata Partition";

/// A generator of numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}
