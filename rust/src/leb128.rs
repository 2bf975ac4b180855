//! Numbers in LEB128: seven bits a byte, the lowest first, the upper bit set in all bytes but the last.

/// Writes a number.
#[inline]
pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a number byte by byte; none where it has more than 64 bits.
#[inline]
pub(crate) fn read<E>(mut next: impl FnMut() -> Result<u8, E>) -> Result<Option<u64>, E> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok((shift < 63 || byte <= 1).then_some(number));
        }
    }
    Ok(None)
}

/// The number that `bytes` begin with, and how many bytes it takes; none where they end before it does, or
/// it has more than 64 bits.
#[inline]
pub(crate) fn get(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (place, &byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return (place < 9 || byte <= 1).then_some((number, place + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_longer_is() {
        for bit in 0..64 {
            for number in [1_u64 << bit, (1 << bit) - 1, u64::MAX >> bit] {
                let mut bytes = Vec::new();
                put(&mut bytes, number);
                assert_eq!(get(&bytes), Some((number, bytes.len())));
                assert_eq!(get(&bytes[..bytes.len() - 1]), None);
                let mut rest = bytes.iter().copied();
                assert_eq!(read(|| rest.next().ok_or(())), Ok(Some(number)));
            }
        }
        for long in [[0x80; 11], [0xff; 11]] {
            assert_eq!(get(&long), None);
            let mut rest = long.into_iter();
            assert_eq!(read(|| rest.next().ok_or(())), Ok(None));
        }
        let two_more_bits = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(get(&two_more_bits), None);
    }
}
