//! A normalized hashtag as two words and a hash.
//!
//! Most hashtags have at most 15 bytes. Such a tag *is* its [`Key`]: the bytes, padded with zeros,
//! and the length as the last byte, so that comparing and hashing it takes a few instructions and no
//! look anywhere else. A longer tag's key has the place of its bytes.
//!
//! The hash of a short tag is two folded multiplications of the key's words, that of a long one the
//! XXH3 hash (64 bits) of its bytes. Files of counts are in the order of this hash, so it is part of
//! their format.
//!
//! Tags of plain characters, what nearly all are, are normalized here as well,
//! 16 bytes at a time: [`Tag::plain`].

use xxhash_rust::xxh3::xxh3_64;

use super::MAX_BYTES;

/// Bytes of a tag that a key has in itself.
pub(crate) const INLINE: usize = 15;

/// Bytes that a view of Arrow's has in itself.
pub(crate) const VIEW_INLINE: usize = 12;

/// The last byte of a long tag's key.
const LONG: u64 = 0xff << 56;

const SEEDS: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

/// A short tag itself, or where a long one is: its place, and as the second word the mark of a
/// long tag, its length (one byte) and 32 bits of its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Key {
    low: u64,
    high: u64,
}

impl Key {
    /// The key of no tag.
    pub(crate) const NONE: Self = Self { low: 0, high: LONG };

    fn short(bits: u128, length: usize) -> Self {
        Self { low: bits as u64, high: (bits >> 64) as u64 | (length as u64) << 56 }
    }

    /// The key of the tag whose text is in `view`, a view of Arrow's, if that is in normal form;
    /// else the key of no tag, or of one that `view` is not the text of.
    #[inline(always)]
    pub(crate) fn of_view(view: u128) -> Self {
        Self { low: (view >> 32) as u64, high: (view >> 96) as u64 | (view as u64) << 56 }
    }

    /// A place for the key among 2^`bits`; only short tags are sought there.
    #[inline(always)]
    pub(crate) fn place(self, bits: u32) -> usize {
        let mixed = self.low ^ self.high.rotate_left(29);
        (mixed.wrapping_mul(SEEDS[0]) >> (64 - bits)) as usize
    }

    /// The same for 16 bytes of any meaning.
    #[inline(always)]
    pub(crate) fn place_of(bits: u128, place_bits: u32) -> usize {
        Self { low: bits as u64, high: (bits >> 64) as u64 }.place(place_bits)
    }

    #[inline]
    pub(crate) fn is_long(self) -> bool {
        self.high >= LONG
    }

    /// Bytes of a long tag.
    #[inline]
    pub(crate) fn long_len(self) -> usize {
        usize::from((self.high >> 48) as u8)
    }

    /// Whether the keys are the same, found without a branch.
    #[inline]
    pub(crate) fn equals(self, other: Self) -> bool {
        (self.low ^ other.low) | (self.high ^ other.high) == 0
    }

    /// Whether this is the key of `tag`; long tags are in `arena`.
    #[inline]
    pub(crate) fn is(self, tag: &Tag<'_>, arena: &[u8]) -> bool {
        if self.high != tag.key.high {
            return false;
        }
        if self.is_long() {
            same_long(self.long_bytes(arena), tag.long)
        } else {
            self.low == tag.key.low
        }
    }

    fn long_bytes(self, arena: &[u8]) -> &[u8] {
        let start = self.low as usize;
        arena.get(start..start + self.long_len()).unwrap_or_default()
    }

    /// The order of the tags' bytes; long tags are in `arena`.
    #[inline]
    pub(crate) fn compare(self, other: Self, arena: &[u8]) -> std::cmp::Ordering {
        if self.is_long() || other.is_long() {
            // Their hashes do not matter.
            let (a, b) = (self.hashed_tag(0, arena), other.hashed_tag(0, arena));
            return a.bytes(&mut [0; 16]).cmp(b.bytes(&mut [0; 16]));
        }
        // No tag has a zero byte, so the padding sorts a tag before those that begin with it.
        let words = |key: Self| (key.low.swap_bytes(), key.high.swap_bytes());
        words(self).cmp(&words(other))
    }

    /// The tag of this key, whose hash is known.
    #[inline]
    pub(crate) fn hashed_tag(self, hash: u64, arena: &[u8]) -> Tag<'_> {
        let long = if self.is_long() { self.long_bytes(arena) } else { &[] };
        Tag { hash, key: self, long }
    }

    /// The tag of this key; long tags are in `arena`.
    #[inline]
    pub(crate) fn tag(self, arena: &[u8]) -> Tag<'_> {
        if self.is_long() {
            Tag::of_bytes(self.long_bytes(arena))
        } else {
            Tag { hash: hash_short(self), key: self, long: &[] }
        }
    }
}

/// Whether two texts, of at least 16 bytes, are the same: most are looked at in two pieces that overlap.
#[inline(always)]
fn same_long(one: &[u8], other: &[u8]) -> bool {
    match (one.first_chunk::<16>(), one.last_chunk::<16>()) {
        (Some(first), Some(last)) if one.len() <= 32 && one.len() == other.len() => {
            other.first_chunk() == Some(first) && other.last_chunk() == Some(last)
        }
        _ => one == other,
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[inline]
fn hash_short(Key { low, high }: Key) -> u64 {
    fold(fold(low ^ SEEDS[0], high ^ SEEDS[1]) ^ SEEDS[2], SEEDS[3])
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = ONES << 7;

/// For each length up to 15 the bytes that are within it, in two words.
const WITHIN: [[u64; 2]; 16] = {
    let mut within = [[0; 2]; 16];
    let mut length = 0;
    while length < 16 {
        let bits = (1_u128 << (8 * length)) - 1;
        within[length] = [bits as u64, (bits >> 64) as u64];
        length += 1;
    }
    within
};

/// The top bit of each byte of `text` that is not plain, plain being ASCII from `$` on without DEL:
/// right up to the first one in each word.
#[inline(always)]
fn unplain(text: u64) -> u64 {
    let from = |least: u8| text.wrapping_add(ONES * (0x80 - least as u64));
    // Not ASCII; below '$' (control, space, '#'); DEL.
    (text | !from(b'$') | from(0x7f)) & HIGH
}

/// The top bit of each byte of `text` that is a capital, where all are plain.
#[inline(always)]
fn upper_case(text: u64) -> u64 {
    let from = |least: u8| text.wrapping_add(ONES * (0x80 - least as u64));
    from(b'A') & !from(b'Z' + 1) & HIGH
}

/// The hash by which tags are looked up, and by which files of counts are sorted.
#[inline]
pub fn hash_of(tag: &str) -> u64 {
    Tag::new(tag).hash
}

/// A normalized tag.
#[derive(Debug, Clone, Copy)]
pub struct Tag<'a> {
    hash: u64,
    key: Key,
    long: &'a [u8],
}

impl<'a> Tag<'a> {
    /// A tag whose text is in normal form already.
    #[inline]
    pub fn new(text: &'a str) -> Self {
        Self::of_bytes(text.as_bytes())
    }

    #[inline]
    pub(crate) fn of_bytes(text: &'a [u8]) -> Self {
        if text.len() <= INLINE {
            let mut bytes = [0; 16];
            bytes[..text.len()].copy_from_slice(text);
            let key = Key::short(u128::from_le_bytes(bytes), text.len());
            return Self { hash: hash_short(key), key, long: &[] };
        }
        let hash = xxh3_64(text);
        let high = LONG | (text.len() as u64 & 0xff) << 48 | u64::from(hash as u32);
        Self { hash, key: Key { low: 0, high }, long: text }
    }

    /// The normal form of the tag in the lowest `length` bytes of `bits`, 15 at most, where it needs
    /// no more than lower case: ASCII from `$` on without DEL. `None` asks for the full way.
    #[inline(always)]
    pub(crate) fn plain(bits: u128, length: usize) -> Option<Self> {
        if length == 0 || length > INLINE {
            return None;
        }
        // What is outside is zero, which is not plain and does not matter.
        let [low_mask, high_mask] = WITHIN[length];
        let (low, high) = (bits as u64 & low_mask, (bits >> 64) as u64 & high_mask);
        if unplain(low) & low_mask | unplain(high) & high_mask != 0 {
            return None;
        }
        let low = low | upper_case(low) >> 2;
        let high = high | upper_case(high) >> 2 | (length as u64) << 56;
        let key = Key { low, high };
        Some(Self { hash: hash_short(key), key, long: &[] })
    }

    /// The tag `text`, of 16 bytes or more, where it is plain and in normal form already.
    #[inline]
    pub(crate) fn plain_long(text: &'a [u8]) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        // Pieces of 16 bytes, the last one overlapping.
        let pieces =
            text.chunks_exact(16).map(Some).chain([text.last_chunk::<16>().map(|c| &c[..])]);
        for piece in pieces {
            let bits = u128::from_le_bytes(piece?.try_into().ok()?);
            let (low, high) = (bits as u64, (bits >> 64) as u64);
            if unplain(low) | unplain(high) | upper_case(low) | upper_case(high) != 0 {
                return None;
            }
        }
        Some(Self::of_bytes(text))
    }

    /// Whether `view`, a view of Arrow's that has its text in itself, is this tag in normal form.
    #[inline]
    pub(crate) fn is_view(&self, view: u128) -> bool {
        view as u32 as usize <= VIEW_INLINE && self.key.equals(Key::of_view(view))
    }

    /// The tag as it was before it was stored: the key of a long one has no place yet.
    #[inline]
    pub(crate) fn unstored(self) -> Self {
        let low = if self.is_long() { 0 } else { self.key.low };
        Self { key: Key { low, ..self.key }, ..self }
    }

    /// Its key; that of a long tag has the place of its bytes only once it is stored.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Its hash.
    #[inline]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    #[inline]
    pub(crate) fn is_long(&self) -> bool {
        self.key.is_long()
    }

    /// The bytes of a long tag; none of a short one.
    pub(crate) fn long(&self) -> &'a [u8] {
        self.long
    }

    /// The key by which the tag is kept; the bytes of a long one are added to `arena`.
    #[inline]
    pub(crate) fn stored(&self, arena: &mut Vec<u8>) -> Key {
        if !self.is_long() {
            return self.key;
        }
        let place = arena.len() as u64;
        arena.extend_from_slice(self.long);
        Key { low: place, high: self.key.high }
    }

    /// Its bytes, which are UTF-8; those of a short tag are laid into `buffer`.
    #[inline]
    pub fn bytes<'b>(&self, buffer: &'b mut [u8; 16]) -> &'b [u8]
    where
        'a: 'b,
    {
        if self.is_long() {
            return self.long;
        }
        buffer[..8].copy_from_slice(&self.key.low.to_le_bytes());
        buffer[8..].copy_from_slice(&self.key.high.to_le_bytes());
        let length = usize::from(buffer[INLINE]);
        buffer.get(..length).unwrap_or_default()
    }

    /// Its text; that of a short tag is laid into `buffer`.
    pub fn text<'b>(&self, buffer: &'b mut [u8; 16]) -> &'b str
    where
        'a: 'b,
    {
        // Every tag was text before it was a key.
        std::str::from_utf8(self.bytes(buffer)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Scratch, normalize};
    use super::*;

    #[test]
    fn plain_tags_agree_with_the_full_normalization() {
        let mut scratch = Scratch::default();
        for first in 0..=255_u8 {
            for second in [b'a', b'Z', b'#', b' ', b'~', first] {
                for length in 0..=16_usize {
                    let mut bytes = [second; 16];
                    bytes[0] = first;
                    let Some(tag) = Tag::plain(u128::from_le_bytes(bytes), length) else {
                        continue;
                    };
                    let full = normalize(&bytes[..length], &mut scratch);
                    assert_eq!(Ok(tag.text(&mut [0; 16])), full);
                    assert_eq!(tag.hash(), hash_of(full.unwrap()));
                }
            }
        }
        assert!(Tag::plain(u128::from_le_bytes(*b"Cat............."), 3).is_some());
    }

    #[test]
    fn long_tags_are_plain_only_where_nothing_changes_them() {
        let mut scratch = Scratch::default();
        for length in 16..=130 {
            for place in 0..length {
                for byte in [b'a', b'A', b'#', b' ', 0x7f, 0xc3, b'Z', b'$'] {
                    let mut bytes = vec![b'b'; length];
                    bytes[place] = byte;
                    let full = normalize(&bytes, &mut scratch);
                    let same = full.is_ok_and(|text| text.as_bytes() == bytes);
                    let plain = Tag::plain_long(&bytes);
                    assert!(same || plain.is_none());
                    assert!(plain.is_some() || !same || byte == b'#' || byte == b' ');
                    assert!(plain.is_none_or(|tag| tag.bytes(&mut [0; 16]) == bytes));
                }
            }
        }
    }

    #[test]
    fn keys_find_their_tags_again() {
        let mut arena = Vec::new();
        let texts = ["", "a", "fifteen-bytes-o", "sixteen-bytes-of", &"x".repeat(128)];
        let keys: Vec<_> = texts.iter().map(|text| Tag::new(text).stored(&mut arena)).collect();
        for (key, text) in keys.iter().zip(texts) {
            assert_eq!(key.tag(&arena).text(&mut [0; 16]), text);
            assert_eq!(key.tag(&arena).hash(), hash_of(text));
            for (other_key, other) in keys.iter().zip(texts) {
                assert_eq!(key.compare(*other_key, &arena), text.cmp(other));
                assert_eq!(key.is(&Tag::new(other), &arena), text == other);
            }
        }
    }
}
