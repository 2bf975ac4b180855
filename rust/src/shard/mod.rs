//! Tar shards, scanned by their headers alone.
//!
//! A shard is an uncompressed tar archive in WebDataset's layout: the members of a sample are
//! together and share the key, which is the name up to the first dot of its last part. A scan reads
//! headers (and the small members that have labels) through a window that grows while members are
//! small and shrinks where content is skipped, so image bytes are hardly touched. A shard in a store is
//! scanned in the same way by requests of ranges: what is nearer than a request would take is read
//! over, and every answer must be of the object that the first one was of.
//!
//! Understood: POSIX ustar with its prefix field, GNU long names, PAX `path` and `size`, sizes in
//! base 256. Refused with the offset: a wrong header checksum, a member that reaches past the end of
//! the file, an archive without its end mark or with data after it, sparse members. Every header
//! moves the scan forward by at least one block, so it ends on any input.

pub mod members;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::job::Job;
use crate::store::{Object, Span, Storage, is_remote};
use crate::{Error, Result};

/// Size of a tar block; a header takes one.
pub const BLOCK: usize = 512;

/// Longer member names are refused: no file system makes them.
pub const MAX_NAME_BYTES: usize = 4096;

/// Shards in stores that are scanned at once; each has a window of at most a request.
pub(crate) const MAX_SCANS: usize = 16;

const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// The smallest window, and the largest after content that was skipped.
const SMALL_WINDOWS: [usize; 2] = [1 << 10, 8 << 10];
const LARGE_WINDOW: usize = 1 << 20;
/// The first window of a shard in a store, and of what follows a gap.
const SMALL_REQUEST: usize = 64 << 10;

/// Extensions (in lower case) of members that are an image.
pub const IMAGE_EXTENSIONS: [&str; 10] =
    ["jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff"];

/// One regular file of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// The whole name, folder included.
    pub name: Vec<u8>,
    /// Where its first header begins: its own, or an extended one before it.
    pub start: u64,
    /// Where its content begins; its own header is the block before.
    pub offset: u64,
    /// Bytes of content.
    pub size: u64,
    /// Whether its own header states that size; otherwise an extended header does.
    pub size_in_header: bool,
}

/// What a whole scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Bytes of the file.
    pub size: u64,
    /// XXH3 of all headers and name extensions, in order.
    pub header_checksum: u64,
}

/// Where the bytes of a shard come from.
enum Source<'a> {
    File(File),
    Object { storage: Storage, object: Object, job: Option<&'a Job> },
}

impl Source<'_> {
    /// The smallest windows, the largest one, and how much is read over rather than skipped.
    fn windows(&self) -> ([usize; 2], usize, u64) {
        match self {
            Self::File(_) => (SMALL_WINDOWS, LARGE_WINDOW, 0),
            Self::Object { storage, .. } => {
                let limits = storage.limits();
                ([SMALL_REQUEST; 2], limits.request_bytes as usize, limits.gap_bytes)
            }
        }
    }

    fn read_exact_at(&self, window: &mut [u8], at: u64, path: &Path) -> Result<bool> {
        match self {
            Self::File(file) => match file.read_exact_at(window, at) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
                Err(error) => Err(Error::io(path, error)),
            },
            Self::Object { storage, object, job } => {
                let own = Job::new();
                let span = Span {
                    uri: object.uri.as_str().into(),
                    range: at..at + window.len() as u64,
                    etag: Some(object.etag.as_str().into()),
                };
                storage.read_spans(vec![span], job.unwrap_or(&own), |_, bytes| {
                    window.copy_from_slice(bytes);
                    Ok(())
                })?;
                Ok(true)
            }
        }
    }
}

/// A shard being scanned from its first header to its end mark.
pub struct Scanner<'a> {
    path: PathBuf,
    source: Source<'a>,
    size: u64,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
    hasher: Xxh3,
    finished: bool,
    end_of_members: u64,
    num_links: u64,
    num_devices: u64,
}

#[derive(Debug, Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<'a> Scanner<'a> {
    /// Opens a shard; an empty file is refused by the first [`next`](Self::next_member).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io(&path, error))?;
        if !metadata.is_file() {
            return Err(Error::usage(format!("{}: a shard must be a file", path.display())));
        }
        Ok(Self::new(path, Source::File(file), metadata.len(), Vec::new()))
    }

    /// Opens a shard that is a file or, where `path` is the URI of one, an object of a store.
    pub fn open_in(path: &Path, storage: &Storage, job: Option<&'a Job>) -> Result<Self> {
        let Some(uri) = path.to_str().filter(|path| is_remote(path)) else {
            return Self::open(path);
        };
        let own = Job::new();
        let (start, object) = storage.read_start(uri, SMALL_REQUEST as u64, job.unwrap_or(&own))?;
        let size = object.size;
        let source = Source::Object { storage: storage.clone(), object, job };
        Ok(Self::new(path.to_path_buf(), source, size, start))
    }

    fn new(path: PathBuf, source: Source<'a>, size: u64, window: Vec<u8>) -> Self {
        Self {
            path,
            source,
            size,
            position: 0,
            window,
            window_start: 0,
            hasher: Xxh3::new(),
            finished: false,
            end_of_members: 0,
            num_links: 0,
            num_devices: 0,
        }
    }

    /// The etag of a shard in a store; none of a file.
    pub fn etag(&self) -> Option<&str> {
        match &self.source {
            Source::File(_) => None,
            Source::Object { object, .. } => Some(&object.etag),
        }
    }

    /// The next regular file, in tar order; `None` at the end mark.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        let mut member = Member::default();
        Ok(self.next_into(&mut member)?.then_some(member))
    }

    /// The same into `member`, whose memory is used again; returns whether there was one.
    pub fn next_into(&mut self, member: &mut Member) -> Result<bool> {
        let mut extension = Extension::default();
        let mut start = None;
        while !self.finished {
            let at = self.position;
            let header = self.header(at)?;
            let Some(header) = header else {
                if extension.name.is_some() || extension.size.is_some() {
                    return Err(self.bad(at, "the archive ends after a name without its member"));
                }
                self.end_of_members = at;
                self.finish(at)?;
                break;
            };

            // An extension is about the member after it, so it is kept until that one comes.
            let kind = header[156];
            let content = at + BLOCK as u64;
            let stated = number(&header[124..136]).ok_or_else(|| self.bad(at, "no valid size"))?;
            match kind {
                b'L' | b'K' | b'x' | b'g' => {
                    start = start.or_else(|| (kind != b'g').then_some(at));
                    let bytes = self.extension(at, stated)?;
                    match kind {
                        b'L' => extension.name = Some(until_nul(&bytes).to_vec()),
                        b'x' => self.read_pax(at, &bytes, &mut extension)?,
                        b'g' => self.read_global(at, &bytes)?,
                        _ => (),
                    }
                    self.position = self.end_of(at, stated)?;
                }
                0 | b'0' | b'7' => {
                    let size = extension.size.unwrap_or(stated);
                    self.position = self.end_of(at, size)?;
                    match extension.name.take() {
                        Some(name) => member.name = name,
                        None => read_name(&header, &mut member.name),
                    }
                    extension = Extension::default();
                    if member.name.len() > MAX_NAME_BYTES {
                        return Err(self.bad(at, "the name of the member is over 4096 bytes"));
                    }
                    // Before POSIX a folder was a file whose name ends so; its size means nothing.
                    if kind == 0 && member.name.last() == Some(&b'/') {
                        (self.position, start) = (content, None);
                        continue;
                    }
                    (member.offset, member.size) = (content, size);
                    member.start = start.unwrap_or(at);
                    member.size_in_header = size == stated;
                    return Ok(true);
                }

                // Links and devices have no content, whatever their size is.
                b'1'..=b'6' => {
                    self.num_links += u64::from(kind <= b'2');
                    self.num_devices += u64::from(matches!(kind, b'3' | b'4' | b'6'));
                    (self.position, start) = (content, None);
                    extension = Extension::default();
                }
                b'S' => return Err(self.bad(at, "sparse members are not read; repack the shard")),
                _ => return Err(self.bad(at, "a member of a kind that is not known")),
            }
        }
        Ok(false)
    }

    /// Where the last header that was read ends, its content included; at the end, the end mark.
    pub fn end_of_members(&self) -> u64 {
        self.end_of_members
    }

    /// Links so far; they are passed over.
    pub fn num_links(&self) -> u64 {
        self.num_links
    }

    /// Devices and pipes so far; they are passed over.
    pub fn num_devices(&self) -> u64 {
        self.num_devices
    }

    /// The content of a small member; `limit` caps what is read.
    pub fn content(&mut self, member: &Member, limit: u64) -> Result<Vec<u8>> {
        if member.size > limit {
            return Err(self.bad(
                member.offset,
                &format!("a label of {} bytes; at most {limit} are read", member.size),
            ));
        }
        Ok(self.bytes(member.offset, member.size as usize)?.to_vec())
    }

    /// Size and header checksum; to be asked for after the end.
    pub fn summary(&self) -> Summary {
        Summary { size: self.size, header_checksum: self.hasher.digest() }
    }

    /// The header at `at`, checked and hashed; `None` for a block of zeros.
    fn header(&mut self, at: u64) -> Result<Option<[u8; BLOCK]>> {
        if self.size.saturating_sub(at) < BLOCK as u64 {
            return Err(self.bad(
                at,
                "the file ends here without the end mark of an archive; the shard was cut short, \
                 so copy or make it again",
            ));
        }
        let mut header = [0; BLOCK];
        header.copy_from_slice(self.bytes(at, BLOCK)?);
        if header[0] == 0 && header == [0; BLOCK] {
            return Ok(None);
        }
        if !checksum_holds(&header) {
            return Err(self.bad(
                at,
                "no tar header here (its checksum does not hold); the shard is damaged or is not \
                 an uncompressed tar archive",
            ));
        }
        self.hasher.update(&header);
        Ok(Some(header))
    }

    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION_BYTES {
            return Err(self.bad(at, "an extended header of more than a mebibyte"));
        }
        self.end_of(at, size)?;
        let bytes = self.bytes(at + BLOCK as u64, size as usize)?.to_vec();
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    /// Records `<length> <key>=<value>\n`, of which only names and sizes matter here.
    fn read_pax(&self, at: u64, mut bytes: &[u8], extension: &mut Extension) -> Result<()> {
        let wrong = || self.bad(at, "an extended (PAX) header that cannot be read");
        while !until_nul(bytes).is_empty() {
            let space = bytes.iter().position(|&byte| byte == b' ').ok_or_else(wrong)?;
            let length = decimal(&bytes[..space]).ok_or_else(wrong)?;
            let length = usize::try_from(length).map_err(|_| wrong())?;
            let record = bytes.get(space + 1..length).ok_or_else(wrong)?;
            let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => extension.name = Some(value.to_vec()),
                b"size" => extension.size = Some(decimal(value).ok_or_else(wrong)?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(self.bad(at, "sparse members are not read; repack the shard"));
                }
                _ => (),
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// A global header may have nothing that would change members one by one.
    fn read_global(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut extension = Extension::default();
        self.read_pax(at, bytes, &mut extension)?;
        if extension.name.is_some() || extension.size.is_some() {
            return Err(self.bad(
                at,
                "a global extended header that names or sizes members; repack the shard",
            ));
        }
        Ok(())
    }

    /// Where the next header is, after a member whose header is at `at`.
    fn end_of(&self, at: u64, size: u64) -> Result<u64> {
        let content = at + BLOCK as u64;
        let end = size
            .checked_next_multiple_of(BLOCK as u64)
            .and_then(|padded| content.checked_add(padded))
            .filter(|&end| end <= self.size);
        end.ok_or_else(|| {
            self.bad(
                at,
                &format!(
                    "a member of {size} bytes reaches past the end of the file at {}; the shard \
                     was cut short, so copy or make it again",
                    self.size
                ),
            )
        })
    }

    /// After the end mark only zeros may follow: anything else would be lost without a word.
    fn finish(&mut self, mut at: u64) -> Result<()> {
        while at < self.size {
            let length = (self.size - at).min(LARGE_WINDOW as u64) as usize;
            if self.bytes(at, length)?.iter().any(|&byte| byte != 0) {
                return Err(self.bad(
                    at,
                    "there is data after the end mark of the archive; joined archives are not \
                     read past the first, so repack the shard",
                ));
            }
            at += length as u64;
        }
        self.position = self.size;
        self.finished = true;
        Ok(())
    }

    fn bytes(&mut self, at: u64, length: usize) -> Result<&[u8]> {
        let end = at + length as u64;
        let window_end = self.window_start + self.window.len() as u64;
        if at < self.window_start || end > window_end {
            // A request that begins inside the window or near its end reads on; others skip.
            let (small, large, gap) = self.source.windows();
            let is_near = at >= self.window_start && at <= window_end.saturating_add(gap);
            let reads_on = is_near && !self.window.is_empty();
            let known = self.window.len();
            let next = match reads_on {
                true => (known * 4).clamp(small[0], large),
                false => (known / 2).clamp(small[0], small[1]),
            };
            let left = self.size.saturating_sub(at);
            let wanted = (next.max(length) as u64).min(left) as usize;
            if wanted < length {
                return Err(self.bad(at, "the file ends here; the shard was cut short"));
            }
            self.window.resize(wanted, 0);
            self.window_start = at;
            let read = self.source.read_exact_at(&mut self.window, at, &self.path);
            if !matches!(read, Ok(true)) {
                self.window.clear();
                read?;
                return Err(self.bad(at, "the file became shorter while it was read"));
            }
        }
        let start = (at - self.window_start) as usize;
        Ok(&self.window[start..start + length])
    }

    fn bad(&self, at: u64, what: &str) -> Error {
        Error::data(format!("{}: at byte {at}: {what}", self.path.display()))
    }
}

/// The key and the extension of a member's name; `None` for names that belong to no sample.
///
/// WebDataset's rule: the last part of the name is cut at its first dot; without a dot, or with
/// nothing before it, the member is left out.
pub fn split_name(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base).then(|| (&name[..dot], &name[dot + 1..]))
}

/// Scans the headers of a shard and returns its size and header checksum, and the etag of one in a store.
pub fn summarize(path: &Path, storage: &Storage, job: &Job) -> Result<(Summary, Option<String>)> {
    let mut scanner = Scanner::open_in(path, storage, Some(job))?;
    let mut number = 0_u64;
    let mut member = Member::default();
    while scanner.next_into(&mut member)? {
        number += 1;
        if number.is_multiple_of(4096) {
            job.check()?;
        }
    }
    Ok((scanner.summary(), scanner.etag().map(str::to_owned)))
}

/// All regular files of a shard, and where its end mark is.
pub fn members(path: &Path, storage: &Storage, job: &Job) -> Result<(Vec<Member>, u64)> {
    let mut scanner = Scanner::open_in(path, storage, Some(job))?;
    let mut members = Vec::new();
    while let Some(member) = scanner.next_member()? {
        if members.len() % 4096 == 0 {
            job.check()?;
        }
        members.push(member);
    }
    Ok((members, scanner.end_of_members()))
}

/// Whether `header`, the block before the content of a member of sample `key`, states `size` and
/// belongs to the sample. A name that does not fit the header is outside it, in an extension,
/// and only the size is compared then.
pub fn header_matches(header: &[u8], key: &[u8], size: u32) -> bool {
    let Some(header) = header.first_chunk::<BLOCK>() else { return false };
    if !checksum_holds(header) || !matches!(header[156], 0 | b'0' | b'7') {
        return false;
    }
    if number(&header[124..136]) != Some(u64::from(size)) {
        return false;
    }
    key.len() > 90 || !key.is_ascii() || name_continues(header, key)
}

/// Whether the name in a header is `key` with a dot after it.
fn name_continues(header: &[u8; BLOCK], key: &[u8]) -> bool {
    let name = until_nul(&header[..100]);
    match prefix(header) {
        None => name.strip_prefix(key).is_some_and(|rest| rest.first() == Some(&b'.')),
        Some(prefix) => {
            let mut whole = prefix.iter().chain(b"/").chain(name);
            key.iter().all(|byte| whole.next() == Some(byte)) && whole.next() == Some(&b'.')
        }
    }
}

/// What is before the name of a member and a slash.
fn prefix(header: &[u8; BLOCK]) -> Option<&[u8]> {
    let there = &header[257..263] == b"ustar\0" && header[345] != 0;
    there.then(|| until_nul(&header[345..500]))
}

#[inline]
fn checksum_holds(header: &[u8; BLOCK]) -> bool {
    let Some(stated) = number(&header[148..156]) else { return false };
    let all = byte_sum(header);
    let field: u32 = header[148..156].iter().map(|&byte| u32::from(byte)).sum();
    let unsigned = u64::from(all - field + 8 * 32);
    stated == unsigned || {
        // Some old writers summed signed bytes.
        let high = |&(at, &byte): &(usize, &u8)| byte >= 128 && !(148..156).contains(&at);
        let high = header.iter().enumerate().filter(high).count();
        i64::try_from(stated) == Ok(unsigned as i64 - 256 * high as i64)
    }
}

/// The bytes of a header added up, sixteen at a time.
fn byte_sum(header: &[u8; BLOCK]) -> u32 {
    let (words, _) = header.as_chunks::<16>();
    words.iter().map(|word| word.iter().map(|&byte| u32::from(byte)).sum::<u32>()).sum()
}

/// Eight octal digits, the first in the lowest byte, eight at a time.
#[inline]
fn eight_digits(digits: u64) -> Option<u64> {
    const ZEROS: u64 = 0x3030_3030_3030_3030;
    const HIGH: u64 = 0xf8f8_f8f8_f8f8_f8f8;
    if digits & HIGH != ZEROS {
        return None;
    }
    let bits = digits ^ ZEROS;
    let pairs = (bits << 3 | bits >> 8) & 0x003f_003f_003f_003f;
    let fours = (pairs << 6 | pairs >> 16) & 0x0000_0fff_0000_0fff;
    Some((fours << 12 | fours >> 32) & 0x00ff_ffff)
}

/// A number field as most are: eleven digits or six, and a zero byte.
#[inline]
fn usual_number(field: &[u8]) -> Option<u64> {
    let word = |at| field[at..].first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
    match field {
        [.., 0] if field.len() == 12 => {
            let (high, low) = (eight_digits(word(0)?)?, eight_digits(word(3)?)?);
            Some(high << 9 | low & 0x1ff)
        }
        [_, _, _, _, _, _, 0, _] => eight_digits(word(0)? << 16 | 0x3030),
        _ => None,
    }
}

/// A number field: octal text, or base 256 where the first bit is set.
#[inline]
fn number(field: &[u8]) -> Option<u64> {
    // Sizes over 8 GiB do not fit the octal digits: GNU tar writes them in base 256.
    if field[0] == 0x80 && field.len() > 8 {
        let (high, low) = field[1..].split_at(field.len() - 9);
        return high
            .iter()
            .all(|&byte| byte == 0)
            .then(|| low.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)));
    }
    if let Some(value) = usual_number(field) {
        return Some(value);
    }
    let digit = |&&byte: &&u8| matches!(byte, b'0'..=b'7');
    let digits = field.iter().take_while(digit).count();
    if (1..=20).contains(&digits) && field.get(digits).is_none_or(|&byte| byte == 0) {
        let add = |value: u64, &byte: &u8| value << 3 | u64::from(byte - b'0');
        return Some(field[..digits].iter().fold(0, add));
    }
    let text = until_nul(field).trim_ascii();
    let mut value = 0_u64;
    for &byte in text {
        let digit = u64::from(byte.wrapping_sub(b'0'));
        value = (digit < 8).then(|| value.checked_mul(8))?? + digit;
    }
    Some(value)
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn read_name(header: &[u8; BLOCK], out: &mut Vec<u8>) {
    out.clear();
    if let Some(prefix) = prefix(header) {
        out.extend_from_slice(prefix);
        out.push(b'/');
    }
    out.extend_from_slice(until_nul(&header[..100]));
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}
