//! SFTP version 3 on the wire (draft-ietf-secsh-filexfer-02), as far as a remote needs it.
//!
//! ```text
//! 4  length of what follows
//! 1  type
//! 4  request id (all but INIT and VERSION)
//!    fields: u32 and u64 big endian; strings as u32 length and bytes
//! ```

use super::super::{ErrorKind, RemoteError, Result};

/// The longest packet that is read. Servers send data of at most what was asked for, and names in packets like this.
pub(super) const PACKET_MAX: usize = 300 << 10;
/// Bytes of a file in one packet: every server takes this.
pub(super) const CHUNK: usize = 32 << 10;

pub(super) const INIT: u8 = 1;
pub(super) const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const STATUS: u8 = 101;
pub(super) const HANDLE: u8 = 102;
pub(super) const DATA: u8 = 103;
pub(super) const NAME: u8 = 104;
pub(super) const ATTRS: u8 = 105;
pub(super) const EXTENDED: u8 = 200;
pub(super) const EXTENDED_REPLY: u8 = 201;

/// Modes of OPEN.
pub(super) const FOR_READING: u32 = 0x01;
pub(super) const NEW_FOR_WRITING: u32 = 0x02 | 0x01 | 0x08 | 0x20;

/// Codes of STATUS.
pub(super) const OK: u32 = 0;
pub(super) const EOF: u32 = 1;
pub(super) const NO_SUCH_FILE: u32 = 2;
pub(super) const PERMISSION_DENIED: u32 = 3;
pub(super) const FAILURE: u32 = 4;
pub(super) const OP_UNSUPPORTED: u32 = 8;

/// A packet that is being made.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    pub(super) fn u32(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub(super) fn string(mut self, bytes: &[u8]) -> Self {
        // Names and chunks are far below 4 GiB: a longer one would be refused by every server.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Attributes of a new file or directory: the mode, nothing else.
    pub(super) fn mode(self, mode: u32) -> Self {
        self.u32(4).u32(mode)
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0
    }
}

/// A packet that is being read. Every field is checked against what is there.
pub(super) struct Reader<'a>(&'a [u8]);

fn short() -> RemoteError {
    RemoteError::new(ErrorKind::Corrupt, "the SFTP server sends packets that make no sense")
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or_else(short)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        let bytes: [u8; 4] = self.take(4)?.try_into().map_err(|_| short())?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| short())?;
        Ok(u64::from_be_bytes(bytes))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn attrs(&mut self) -> Result<Attrs> {
        let flags = self.u32()?;
        let mut attrs = Attrs::default();
        if flags & 1 != 0 {
            attrs.size = Some(self.u64()?);
        }
        if flags & 2 != 0 {
            self.take(8)?;
        }
        if flags & 4 != 0 {
            attrs.mode = Some(self.u32()?);
        }
        if flags & 8 != 0 {
            self.u32()?;
            attrs.modified = Some(self.u32()?);
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attrs)
    }
}

/// What a server says of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attrs {
    pub(super) size: Option<u64>,
    pub(super) mode: Option<u32>,
    /// Seconds since 1970, by the server's clock.
    pub(super) modified: Option<u32>,
}

impl Attrs {
    fn is(self, kind: u32) -> bool {
        self.mode.is_some_and(|mode| mode & 0o170_000 == kind)
    }

    pub(super) fn is_dir(self) -> bool {
        self.is(0o040_000)
    }

    pub(super) fn is_file(self) -> bool {
        self.is(0o100_000)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_have_their_length_in_front() {
        let packet = Writer::new(OPEN).u32(7).string(b"/a").u32(FOR_READING).mode(0o600).finish();
        assert_eq!(
            packet,
            [0, 0, 0, 23, 3, 0, 0, 0, 7, 0, 0, 0, 2, b'/', b'a', 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 1, 0x80]
        );
    }

    #[test]
    fn attributes_are_read_whichever_are_there() {
        let bytes = Writer::new(0)
            .u32(1 | 2 | 4 | 8 | 0x8000_0000)
            .u64(5)
            .u32(1)
            .u32(2)
            .u32(0o100_644)
            .u32(3)
            .u32(4)
            .u32(1);
        let bytes = bytes.string(b"x@y").string(b"z").finish();
        let mut reader = Reader::new(&bytes[5..]);
        let attrs = reader.attrs().unwrap();
        assert_eq!(attrs, Attrs { size: Some(5), mode: Some(0o100_644), modified: Some(4) });
        assert!(attrs.is_file() && !attrs.is_dir() && reader.is_empty());
        assert_eq!(Reader::new(&[0, 0, 0, 0]).attrs().unwrap(), Attrs::default());
    }

    proptest! {
        #[test]
        fn hostile_packets_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            // No panic, no allocation by a length that is not there; how it ends does not matter.
            while reader.attrs().is_ok() && reader.string().is_ok() && !reader.is_empty() {}
            prop_assert!(reader.0.len() <= bytes.len());
        }
    }
}
