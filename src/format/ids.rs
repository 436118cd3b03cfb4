//! Identifiers: fixed-size byte strings, each with a type of its own, so that no one can be taken for
//! another.

/// Defines an identifier of `$len` bytes. `Display` is the short form for people, `to_hex` the whole.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Returns the bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Returns all digits, lower case.
            #[must_use]
            pub fn to_hex(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0)
            }

            /// Reads exactly what [`Self::to_hex`] writes; upper case and other lengths are refused.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                hex_array(text).map(Self)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.iter().take(4).try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self)
            }
        }
    };
}

id_type!(
    /// Names a vault, drawn when it is made. Everything that is sealed is bound to it.
    VaultId, 16
);
id_type!(
    /// Names a pack before its bytes are final, drawn when it is begun. Its frames are bound to it.
    PackUid, 16
);
id_type!(
    /// Names a chunk: the keyed hash of its plaintext.
    ChunkId, 32
);
id_type!(
    /// Names a finished pack: the hash of its file.
    PackName, 32
);
id_type!(
    /// Names a chain file (snapshot or removal): the hash of the file.
    SnapshotId, 32
);

/// Decodes exactly `2 * N` lower-case hex digits.
pub(crate) fn hex_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    match data_encoding::HEXLOWER.decode_mut(text.as_bytes(), &mut out) {
        Ok(n) if n == N => Some(out),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_shows_eight_digits_and_reads_only_all_of_them() {
        let id = ChunkId(std::array::from_fn(|i| i as u8 + 0xa0));
        assert_eq!(id.to_string(), "a0a1a2a3");
        assert_eq!(format!("{id:?}"), "ChunkId(a0a1a2a3)");
        assert_eq!(id.to_hex().len(), 64);
        assert_eq!(ChunkId::from_hex(&id.to_hex()), Some(id));
        assert_eq!(ChunkId::from_hex(&id.to_hex().to_uppercase()), None);
        assert_eq!(ChunkId::from_hex(&id.to_hex()[..63]), None);
        assert_eq!(ChunkId::from_hex(&(id.to_hex() + "0")), None);
        assert_eq!(ChunkId::from_hex(&id.to_hex().replace('b', "g")), None);
        assert_eq!(VaultId::from_hex(&id.to_hex()), None, "an id of another length");
        assert_eq!(VaultId::from_hex(""), None);
        assert_eq!(VaultId::from_hex(&"\u{e9}".repeat(16)), None, "32 bytes that are no digits");
    }
}
