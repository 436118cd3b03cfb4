//! Integers and byte strings as they stand in files: a reader that can't run past its input, and writers.

use super::FormatError;

/// Reads a structure from front to back. Every method fails, without moving, where too few bytes are left.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    short: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`. `short` is the message for input that ends too early: "tree object: too short".
    #[must_use]
    pub fn new(bytes: &'a [u8], short: &'static str) -> Self {
        Reader { rest: bytes, short }
    }

    /// Returns how many bytes have not been read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads the next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(FormatError::Malformed(self.short))?;
        self.rest = tail;
        Ok(head)
    }

    /// Reads the next `N` bytes by value.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(FormatError::Malformed(self.short))?;
        self.rest = tail;
        Ok(*head)
    }

    /// Reads a byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        self.array::<1>().map(|[b]| b)
    }

    /// Reads a little-endian u16.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Reads a little-endian u32.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads a little-endian u64.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a little-endian i64.
    pub fn i64(&mut self) -> Result<i64, FormatError> {
        self.array().map(i64::from_le_bytes)
    }

    /// Reads an unsigned LEB128 integer in its shortest form.
    pub fn varint(&mut self) -> Result<u64, FormatError> {
        // FORMAT GEN-1: the fewest bytes that hold the value, and at most ten.
        let mut value = 0u64;
        for (i, &byte) in self.rest.iter().take(VARINT_LEN_MAX).enumerate() {
            if i == VARINT_LEN_MAX - 1 && byte > 1 {
                return Err(FormatError::Malformed("GEN-1: varint above 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                if byte == 0 && i > 0 {
                    return Err(FormatError::Malformed("GEN-1: varint longer than needed"));
                }
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(FormatError::Malformed(self.short))
    }

    /// Reads a varint that has to fit 32 bits; `what` is the message when it does not.
    pub fn varint_u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        u32::try_from(self.varint()?).map_err(|_| FormatError::Malformed(what))
    }

    /// Reads a zigzag-coded signed integer.
    pub fn zigzag(&mut self) -> Result<i64, FormatError> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// Reads a varint length and as many bytes; more than `max` is malformed with the message `what`.
    pub fn var_bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], FormatError> {
        match usize::try_from(self.varint()?) {
            Ok(n) if n <= max => self.bytes(n),
            _ => Err(FormatError::Malformed(what)),
        }
    }

    /// Reads a varint count of items of at least `min_item_size` bytes each.
    pub fn count(&mut self, min_item_size: usize) -> Result<usize, FormatError> {
        let n = self.varint()?;
        self.fits(n, min_item_size)
    }

    /// Reads a u32 count of items of at least `min_item_size` bytes each.
    pub fn count_u32(&mut self, min_item_size: usize) -> Result<usize, FormatError> {
        let n = u64::from(self.u32()?);
        self.fits(n, min_item_size)
    }

    /// Ends reading.
    pub fn finish(self) -> Result<(), FormatError> {
        // FORMAT GEN-2
        if self.rest.is_empty() { Ok(()) } else { Err(FormatError::Malformed("GEN-2: bytes after the end")) }
    }

    /// Returns the bytes that are left and ends reading.
    #[must_use]
    pub fn into_rest(self) -> &'a [u8] {
        self.rest
    }

    fn fits(&self, count: u64, min_item_size: usize) -> Result<usize, FormatError> {
        // FORMAT GEN-3: before anything is allocated for it.
        match usize::try_from(count) {
            Ok(n) if n.checked_mul(min_item_size).is_some_and(|need| need <= self.rest.len()) => Ok(n),
            _ => Err(FormatError::Malformed("GEN-3: count beyond what the input can hold")),
        }
    }
}

/// The longest varint, in bytes.
const VARINT_LEN_MAX: usize = 10;

/// How many items are reserved at once for a count that came from outside. A longer list grows as its items
/// are really read, so that memory stays in proportion to the input.
pub(crate) const RESERVE_MAX: usize = 1024;

/// Appends an unsigned LEB128 integer in its shortest form.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a zigzag-coded signed integer.
pub fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a varint length and the bytes.
pub fn put_var_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a little-endian u32 count.
pub(crate) fn put_count_u32(out: &mut Vec<u8>, count: usize) -> Result<(), FormatError> {
    let count = u32::try_from(count).map_err(|_| FormatError::Limit("more than 2^32 - 1 items"))?;
    out.extend_from_slice(&count.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn reader(bytes: &[u8]) -> Reader<'_> {
        Reader::new(bytes, "short")
    }

    fn varint(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        out
    }

    #[test]
    fn varints_have_one_form() {
        for (value, bytes) in [
            (0, vec![0]),
            (127, vec![0x7f]),
            (128, vec![0x80, 1]),
            (16_384, vec![0x80, 0x80, 1]),
            (u64::MAX, vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ] {
            assert_eq!(varint(value), bytes);
            assert_eq!(reader(&bytes).varint(), Ok(value));
        }
        // FORMAT GEN-1
        for bad in [
            &[0x80, 0][..],
            &[0xff, 0x80, 0],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0],
        ] {
            assert!(
                matches!(reader(bad).varint(), Err(FormatError::Malformed(m)) if m.starts_with("GEN-1")),
                "{bad:?}"
            );
        }
        for short in [&[][..], &[0x80], &[0xff; 9]] {
            assert_eq!(reader(short).varint(), Err(FormatError::Malformed("short")), "{short:?}");
        }
    }

    #[test]
    fn zigzag_covers_both_ends() {
        for value in [0, -1, 1, i64::MIN, i64::MAX, -64, 63] {
            let mut out = Vec::new();
            put_zigzag(&mut out, value);
            assert_eq!(reader(&out).zigzag(), Ok(value));
        }
        let mut out = Vec::new();
        put_zigzag(&mut out, -1);
        assert_eq!(out, [1]);
    }

    #[test]
    fn fixed_integers_are_little_endian() {
        let mut r = reader(&[
            1, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]);
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.u16(), Ok(2));
        assert_eq!(r.u32(), Ok(3));
        assert_eq!(r.u64(), Ok(4));
        assert_eq!(r.i64(), Ok(-1));
        assert_eq!(r.u8(), Err(FormatError::Malformed("short")));
        r.finish().unwrap();
    }

    #[test]
    fn a_count_is_compared_with_the_input_first() {
        // FORMAT GEN-3
        assert_eq!(reader(&[2, 0, 0, 0, 0]).count(2), Ok(2));
        assert!(reader(&[3, 0, 0, 0, 0]).count(2).is_err());
        assert!(reader(&varint(u64::MAX)).count(32).is_err());
        assert!(reader(&varint(u64::MAX / 2)).count(4).is_err(), "a product that would overflow");
        assert!(reader(&[0xff, 0xff, 0xff, 0xff]).count_u32(1).is_err());
        assert_eq!(reader(&[0, 0, 0, 0]).count_u32(100), Ok(0));
    }

    #[test]
    fn bytes_left_over_are_malformed() {
        // FORMAT GEN-2
        assert!(reader(&[]).finish().is_ok());
        assert!(reader(&[0]).finish().is_err());
    }

    #[test]
    fn a_length_above_its_bound_is_refused_even_if_the_bytes_are_there() {
        assert_eq!(reader(&[2, 7, 8]).var_bytes(2, "long"), Ok(&[7, 8][..]));
        assert_eq!(reader(&[2, 7, 8]).var_bytes(1, "long"), Err(FormatError::Malformed("long")));
        assert_eq!(reader(&[2, 7]).var_bytes(2, "long"), Err(FormatError::Malformed("short")));
        assert_eq!(reader(&varint(1 << 32)).varint_u32("wide"), Err(FormatError::Malformed("wide")));
    }

    proptest! {
        #[test]
        fn every_integer_survives(a: u64, b: i64) {
            let mut out = varint(a);
            put_zigzag(&mut out, b);
            let mut r = reader(&out);
            prop_assert_eq!(r.varint(), Ok(a));
            prop_assert_eq!(r.zigzag(), Ok(b));
            prop_assert!(r.finish().is_ok());
        }

        #[test]
        fn whatever_reads_as_a_varint_is_its_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut r = reader(&bytes);
            if let Ok(value) = r.varint() {
                let used = bytes.len() - r.remaining();
                prop_assert_eq!(&varint(value)[..], &bytes[..used]);
            }
        }
    }
}
