//! Shards from outside: hand-made archives, cut and altered at every place.

use std::fs;
use std::path::Path;

use wsl_core::Error;
use wsl_core::shard::{BLOCK, Member, Scanner, header_matches, split_name};

fn header(name: &[u8], kind: u8, size: usize) -> Vec<u8> {
    let mut header = vec![0; BLOCK];
    header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

pub fn member(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, content.len());
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn scan(path: &Path) -> Result<Vec<Member>, Error> {
    let mut scanner = Scanner::open(path)?;
    let mut members = Vec::new();
    while let Some(member) = scanner.next_member()? {
        members.push(member);
    }
    Ok(members)
}

fn scan_bytes(bytes: &[u8]) -> Result<Vec<Member>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tar");
    fs::write(&path, bytes).unwrap();
    scan(&path)
}

fn small() -> Vec<u8> {
    let long = [b"d/".repeat(80), b"b.jpg".to_vec()].concat();
    let pax = [b"185 path=".to_vec(), b"e/".repeat(85), b"c.jpg\n".to_vec()].concat();
    assert_eq!(pax.len(), 185);
    let mut bytes = member(b"a.jpg", b'0', b"first");
    bytes.extend(member(b"folder/", b'5', b""));
    bytes.extend(member(b"././@LongLink", b'L', &[&long[..], b"\0"].concat()));
    bytes.extend(member(&long, b'0', &[7; 600]));
    bytes.extend(member(b"PaxHeaders/x", b'x', &pax));
    bytes.extend(member(b"short", b'0', b"third"));
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

#[test]
fn ustar_gnu_and_pax_names_are_read_and_folders_are_not_members() {
    let members = scan_bytes(&small()).unwrap();
    let names: Vec<_> = members.iter().map(|m| String::from_utf8_lossy(&m.name)).collect();
    assert_eq!(names[0], "a.jpg");
    assert_eq!(names[1], format!("{}b.jpg", "d/".repeat(80)));
    assert_eq!(names[2], format!("{}c.jpg", "e/".repeat(85)));
    assert_eq!(members[0].offset, 512);
    assert_eq!(members.iter().map(|m| m.size).collect::<Vec<_>>(), [5, 600, 5]);
}

#[test]
fn a_shard_cut_at_any_place_before_its_end_mark_is_an_error_that_names_it() {
    let whole = small();
    for length in 0..whole.len() {
        let outcome = scan_bytes(&whole[..length]);
        if length == whole.len() - BLOCK {
            assert_eq!(outcome.unwrap().len(), 3);
        } else if length < whole.len() - BLOCK {
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains("s.tar: at byte "), "{length}: {message}");
        }
    }
}

#[test]
fn an_altered_header_byte_is_an_error() {
    let whole = small();
    for at in 0..BLOCK {
        let mut altered = whole.clone();
        altered[at] ^= 0x5a;
        // The two bytes behind the checksum's digits carry nothing.
        assert!(scan_bytes(&altered).is_err() || (154..156).contains(&at), "byte {at}");
    }
}

#[test]
fn data_after_the_end_mark_is_not_passed_over() {
    let joined = [small(), small()].concat();
    assert!(scan_bytes(&joined).unwrap_err().to_string().contains("after the end mark"));
}

#[test]
fn a_size_that_overflows_is_an_error() {
    let mut bytes = header(b"a.jpg", b'0', 0);
    bytes[124] = 0x80;
    bytes[125..136].fill(0);
    bytes[128..136].fill(0xff);
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.extend([0; 2 * BLOCK]);
    assert!(scan_bytes(&bytes).unwrap_err().to_string().contains("past the end"));
}

#[test]
fn names_are_cut_at_the_first_dot_of_their_last_part() {
    assert_eq!(split_name("a.b/c.d.jpg"), Some(("a.b/c", "d.jpg")));
    assert_eq!(split_name("./c.jpg"), Some(("./c", "jpg")));
    assert_eq!(split_name("a/.hidden"), None);
    assert_eq!(split_name("a.b/c"), None);
}

#[test]
fn a_header_of_another_sample_or_size_does_not_match() {
    let bytes = header(b"a/1.jpg", b'0', 20);
    assert!(header_matches(&bytes, b"a/1", 20));
    assert!(!header_matches(&bytes, b"a/1", 21));
    assert!(!header_matches(&bytes, b"a/2", 20));
    assert!(!header_matches(&bytes[1..], b"a/1", 20));
}
