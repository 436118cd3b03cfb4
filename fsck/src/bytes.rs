//! A cursor over untrusted bytes: section 1 of docs/format.md.

use crate::report::{Fault, malformed};

/// An identifier or a hash: 32 bytes.
pub type Id = [u8; 32];

/// Reads values from the front of a byte slice and never past its end.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`; `what` names the structure in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes the next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        match self.rest.split_at_checked(n) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => Err(malformed("GEN-3", format!("{}: ends too early", self.what))),
        }
    }

    /// Takes the next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(*head)
            }
            None => Err(malformed("GEN-3", format!("{}: ends too early", self.what))),
        }
    }

    /// Reads one byte.
    pub fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    /// Reads a little-endian u16.
    pub fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Reads a little-endian u32.
    pub fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a little-endian u64.
    pub fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a little-endian i64.
    pub fn i64(&mut self) -> Result<i64, Fault> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// Reads an unsigned LEB128 number in its shortest form (GEN-1).
    pub fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0u64;
        for index in 0..10u32 {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit only.
            if index == 9 && bits > 1 {
                return Err(malformed("GEN-1", format!("{}: number above 64 bits", self.what)));
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                if byte == 0 && index > 0 {
                    return Err(malformed(
                        "GEN-1",
                        format!("{}: number not in its shortest form", self.what),
                    ));
                }
                return Ok(value);
            }
        }
        Err(malformed("GEN-1", format!("{}: number longer than 10 bytes", self.what)))
    }

    /// Reads a zigzag-coded i64.
    pub fn zigzag(&mut self) -> Result<i64, Fault> {
        let raw = self.varint()?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// Reads a varint that must fit 32 bits; `rule` is cited when it does not.
    pub fn varint32(&mut self, rule: &'static str) -> Result<u32, Fault> {
        u32::try_from(self.varint()?)
            .map_err(|_| malformed(rule, format!("{}: number above 32 bits", self.what)))
    }

    /// Reads a varint length and that many bytes, at most `max`.
    pub fn counted(&mut self, max: usize, rule: &'static str) -> Result<&'a [u8], Fault> {
        let n = self.varint()?;
        match usize::try_from(n) {
            Ok(n) if n <= max => self.take(n),
            _ => Err(malformed(rule, format!("{}: {n} bytes where at most {max} are allowed", self.what))),
        }
    }

    /// Checks a count against what the rest can hold, each element taking at least `each` bytes (GEN-3).
    pub fn fits(&self, count: u64, each: usize) -> Result<usize, Fault> {
        match usize::try_from(count) {
            Ok(n) if n <= self.rest.len() / each.max(1) => Ok(n),
            _ => Err(malformed("GEN-3", format!("{}: count {count} is more than the bytes hold", self.what))),
        }
    }

    /// Reads `u32 count` and that many identifiers.
    pub fn ids(&mut self) -> Result<Vec<Id>, Fault> {
        let count = self.u32()?;
        let count = self.fits(u64::from(count), 32)?;
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            ids.push(self.array()?);
        }
        Ok(ids)
    }

    /// Ends the structure: nothing may be left (GEN-2).
    pub fn finish(self) -> Result<(), Fault> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(malformed("GEN-2", format!("{}: {} bytes left over", self.what, self.rest.len())))
        }
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Reads exactly `N` bytes from lower-case hex.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    // The length is compared first so that a long text costs nothing.
    if text.len() != 2 * N {
        return None;
    }
    data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn varint(bytes: &[u8]) -> Result<u64, &'static str> {
        let mut r = Reader::new(bytes, "test");
        let v = r.varint().map_err(|f| f.rule)?;
        r.finish().map_err(|f| f.rule)?;
        Ok(v)
    }

    #[test]
    fn varints_have_one_form() {
        assert_eq!(varint(&[0]), Ok(0));
        assert_eq!(varint(&[0x7f]), Ok(127));
        assert_eq!(varint(&[0x80, 1]), Ok(128));
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(varint(&max), Ok(u64::MAX));
        assert_eq!(varint(&[0x80, 0]), Err("GEN-1"));
        assert_eq!(varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), Err("GEN-1"));
        assert_eq!(varint(&[0x80; 11]), Err("GEN-1"));
        assert_eq!(varint(&[0x80]), Err("GEN-3"));
        assert_eq!(varint(&[1, 2]), Err("GEN-2"));
    }

    #[test]
    fn zigzag_reaches_both_ends() {
        for (bytes, value) in [(&[0u8][..], 0i64), (&[1], -1), (&[2], 1), (&[3], -2)] {
            assert_eq!(Reader::new(bytes, "test").zigzag().unwrap(), value);
        }
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Reader::new(&max, "test").zigzag().unwrap(), i64::MIN);
    }

    #[test]
    fn counts_cannot_outgrow_the_input() {
        let mut r = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3], "test");
        assert_eq!(r.ids().unwrap_err().rule, "GEN-3");
        assert_eq!(Reader::new(&[0xff, 0x01], "test").counted(10, "X").unwrap_err().rule, "X");
        assert_eq!(Reader::new(&[9, 1], "test").counted(10, "X").unwrap_err().rule, "GEN-3");
    }

    #[test]
    fn hex_is_lower_case_and_exact() {
        assert_eq!(unhex::<2>("0aff"), Some([0x0a, 0xff]));
        assert_eq!(unhex::<2>("0AFF"), None);
        assert_eq!(unhex::<2>("0aff0"), None);
        assert_eq!(unhex::<2>("0afg"), None);
    }
}
